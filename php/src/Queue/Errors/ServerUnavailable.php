<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** No usable answer: refused, timed out, disconnected, or the server may not do this now. */
class ServerUnavailable extends QueueError
{
}
