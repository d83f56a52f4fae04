<?php

/** Enqueue jobs of the shop: `php php/enqueue.php --tenant acme --file picture.jpg`, or `--tenant acme --count 20`. */

declare(strict_types=1);

use KestrelStack\Queue\Errors\QueueError;
use KestrelStack\Queue\Producer;

require_once __DIR__ . '/stack.php';

/** Bytes of a file that may travel in a job: base64 makes four of three, and a job has at most 1 MB. */
const MOST_BYTES = 700 * 1024;

function refuse(string $why): never
{
    fwrite(STDERR, "enqueue: $why\n");
    exit(1);
}

$given = getopt('', ['tenant:', 'count:', 'file:', 'config:'], $rest);
$known = '--tenant NAME [--count N | --file FILE] [--config FILE]';
if ($rest !== $argc || !is_string($given['tenant'] ?? null) || isset($given['count'], $given['file'])) {
    refuse("usage: php php/enqueue.php $known");
}
$count = filter_var($given['count'] ?? 1, FILTER_VALIDATE_INT, ['options' => ['min_range' => 1]]);
if ($count === false) {
    refuse('--count must be a whole number from 1 on');
}
[$job, $queue, $data] = ['HelloWorld', 'hello_world_php', ['name' => 'World']];
if (isset($given['file'])) {
    $content = is_file($given['file']) ? @file_get_contents($given['file'], false, null, 0, MOST_BYTES + 1) : false;
    if ($content === false) {
        refuse("{$given['file']} cannot be read");
    }
    if (strlen($content) > MOST_BYTES) {
        refuse("{$given['file']} has more than " . MOST_BYTES . ' bytes: put it where every host can read it');
    }
    $data = ['name' => basename($given['file']), 'content' => base64_encode($content)];
    [$job, $queue] = ['PostUpload', 'post_upload'];
}
$ids = [];
$failure = null;
try {
    $producer = Producer::fromSettings($given['tenant'], $given['config'] ?? null);
    for ($number = 0; $number < $count; $number++) {
        $ids[] = $producer->enqueue($job, $data, $queue);
    }
} catch (QueueError $error) {
    $failure = $error->getMessage();
}
// Also after a failure: what was enqueued before it will be done.
$said = ['tenant' => $given['tenant'], 'job' => $job, 'enqueued' => count($ids), 'ids' => $ids];
echo json_encode($said, JSON_INVALID_UTF8_SUBSTITUTE), "\n";
if ($failure !== null) {
    refuse($failure);
}
