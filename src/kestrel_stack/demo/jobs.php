<?php

/**
 * The demo's job: tell the third party of an order, once. jobs.py is the same in Python.
 */

declare(strict_types=1);

use KestrelStack\Consumer\Context;
use KestrelStack\Consumer\Registry;
use KestrelStack\Queue\Once;
use KestrelStack\Queue\PdoStore;

// Seconds for which it is remembered that an order was told.
const TTL = 86400;

$post = static function (string $order, float $timeout): void {
    $request = ['method' => 'POST', 'timeout' => $timeout, 'protocol_version' => 1.1, 'header' => 'Connection: close'];
    $url = getenv('DEMO_API') . "/orders/$order";
    if (@file_get_contents($url, false, stream_context_create(['http' => $request])) === false) {
        throw new RuntimeException('the third party did not answer');
    }
};

return (new Registry())->job('PostOrder', static function (array $data, Context $context) use ($post): void {
    $timeout = (float) getenv('DEMO_TIMEOUT');
    $database = new PDO('sqlite:' . getenv('DEMO_ONCE'), options: [PDO::ATTR_TIMEOUT => 5]);
    // The claim of a worker that was killed ends soon after no call of its can be under way any more.
    $once = new Once(new PdoStore($database), lease: $timeout + 1);
    $once->run($context->id, TTL, static fn () => $post($data['order'], $timeout));
});
