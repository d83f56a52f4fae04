<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** A server that is not written as `host:port`, or an address of a queue that is none. */
class InvalidServer extends QueueError
{
}
