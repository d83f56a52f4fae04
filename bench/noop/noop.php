<?php

/** The job that is measured: it does nothing, but notes when it ran if it is asked to. As noop.py. */

declare(strict_types=1);

use KestrelStack\Consumer\Context;
use KestrelStack\Consumer\Registry;

$registry = new Registry();
$registry->job('Noop', static function (array $data, Context $context): void {
    if (isset($data['mark'])) {
        $line = sprintf("%s %.6f %.6f\n", $data['mark'], microtime(true), $data['sent'] ?? 0);
        file_put_contents(getenv('BENCH_MARKS'), $line, FILE_APPEND);
    }
});
return $registry;
