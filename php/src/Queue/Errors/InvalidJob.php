<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** A job that a producer refuses before anything is sent. */
class InvalidJob extends QueueError
{
}
