<?php

/**
 * Enqueues jobs with PHP's producer, as an application would: JSON on stdin, the jobs' ids on stdout.
 *
 * {"servers": …, "queues": [{"name": …}], "tenant": …, "jobs": [{"job": …, "data": {…}, "queue": …, "delay": …}]}
 */

declare(strict_types=1);

use KestrelStack\Queue\Producer;

require __DIR__ . '/../../php/autoload.php';

$wanted = json_decode(stream_get_contents(STDIN), true, 512, JSON_THROW_ON_ERROR);
$producer = new Producer('shop', $wanted['tenant'], servers: $wanted['servers'], queues: $wanted['queues']);
foreach ($wanted['jobs'] as $job) {
    $id = $producer->enqueue($job['job'], $job['data'], queue: $job['queue'], delay: $job['delay'] ?? null);
    echo $id, "\n";
}
