<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** The base of every error that KestrelStack\Queue throws on purpose. */
class QueueError extends \RuntimeException
{
}
