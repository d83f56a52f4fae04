<?php

/**
 * The shop's jobs in PHP. A worker is told to use them with `--app php/jobs.php`.
 *
 * A job may be delivered more than once, so each of them can be done twice without harm.
 */

declare(strict_types=1);

require_once __DIR__ . '/stack.php';

return (new KestrelStack\Consumer\Registry())
    ->job('HelloWorld', Shop\HelloWorld::class)
    ->job('PostUpload', Shop\PostUpload::class);
