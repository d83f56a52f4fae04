<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** The connection that held a reserved item is gone: the server delivers the item again. */
class ReservationLost extends QueueError
{
}
