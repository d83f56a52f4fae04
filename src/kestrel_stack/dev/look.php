<?php

/** Load an application's jobs as a worker's child would, and write down which there are: `php look.php FILE ANSWER.json`. */

declare(strict_types=1);

require dirname(__DIR__, 3) . '/php/autoload.php';

(static function (string $file, string $answer): void {
    $write = static function (array $content) use ($answer): void {
        file_put_contents("$answer.new", json_encode($content, JSON_INVALID_UTF8_SUBSTITUTE | JSON_FORCE_OBJECT));
        rename("$answer.new", $answer);
    };
    register_shutdown_function(static function () use ($write, $answer): void {
        $last = error_get_last();
        if (!is_file($answer)) {
            // A fatal error, or exit.
            $where = $last === null ? '' : " ({$last['file']} line {$last['line']})";
            $write(['error' => ($last['message'] ?? 'the file ends the process') . $where, 'stack' => '']);
        }
    });
    try {
        $found = require $file;
    } catch (Throwable $error) {
        $where = " ({$error->getFile()} line {$error->getLine()})";
        $write(['error' => $error::class . ': ' . $error->getMessage() . $where, 'stack' => '']);
        return;
    }
    if (!$found instanceof KestrelStack\Consumer\Registry) {
        $write(['error' => "$file returns no KestrelStack\\Consumer\\Registry", 'stack' => '']);
    } elseif ($found->names() === []) {
        $write(['error' => 'the registry has no jobs', 'stack' => '']);
    } else {
        $write(['jobs' => array_fill_keys($found->names(), [])]);
    }
})((string) realpath($argv[1]), $argv[2]);
