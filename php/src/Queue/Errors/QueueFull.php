<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** The server refused the item: the queue is at its limit, or the item is too large for it. */
class QueueFull extends QueueError
{
}
