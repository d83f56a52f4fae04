<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** A namespace or queue name that must not reach a server. */
class InvalidQueueName extends QueueError
{
}
