<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** An answer that this client does not understand; the connection was dropped. */
class ProtocolError extends QueueError
{
}
