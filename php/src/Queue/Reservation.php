<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * One item in a worker's hands; other workers do not see it until it is given back or lost.
 *
 * `queue` is the server's name of the queue that it came from. `ticket` means something only to the queue that made the
 * reservation.
 */
final class Reservation
{
    public function __construct(
        public readonly string $body,
        public readonly Server $server,
        public readonly int $ticket,
        public readonly string $queue,
    ) {
    }
}
