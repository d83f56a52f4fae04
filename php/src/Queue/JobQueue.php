<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * One queue as one worker uses it, in a worker's words: reserve, done, later, park.
 *
 * The worker holds at most one reservation.
 */
interface JobQueue
{
    /** Returns the server's name of the queue. */
    public function name(): string;

    /** Returns the server that the last `reserve` asked. */
    public function server(): Server;

    /** Returns how many servers hold items of this queue. */
    public function serverCount(): int;

    /**
     * Confirms `$done`, if given, and reserves the next item; null when there is none within `$wait` seconds.
     *
     * @throws ReservationLost when `$done` could not be confirmed: it may be delivered again, nothing is reserved
     * @throws ServerUnavailable|ProtocolError then see `pause`
     */
    public function reserve(float $wait, ?Reservation $done = null): ?Reservation;

    /** Returns how long to wait before the next `reserve`, in seconds; not 0 when no server answers. */
    public function pause(): float;

    /** Confirms that the item was dealt with. @throws ReservationLost when it may be delivered again */
    public function done(Reservation $reservation): void;

    /**
     * Writes `$record` to the error queue. The item stays reserved: confirm it with `done` afterwards.
     *
     * @throws ReservationLost when the item will be delivered again; nothing is written
     * @throws QueueFull|ServerUnavailable|ProtocolError when no server took the record
     */
    public function park(Reservation $reservation, string $record): void;

    /**
     * Writes `$body` so that it comes again after `$delay` seconds, one of the queue's retry delays.
     *
     * The item stays reserved: confirm it with `done` afterwards. Throws as `park` does.
     */
    public function later(Reservation $reservation, string $body, int $delay): void;

    /** Says whether the item is known to be no longer reserved, so that it will be delivered again. */
    public function lost(Reservation $reservation): bool;

    /**
     * Returns a stream that becomes readable when a reservation is lost; null without one.
     *
     * @return ?resource
     */
    public function stream();

    /** Closes all connections; a reserved item goes back to its queue. */
    public function drop(): void;

    /** Says whether it is time to look for pings where items are taken from. Sends nothing. */
    public function pingsDue(): bool;

    /**
     * Has `$answer` reply to the pings for the workers of this queue on `$host`; null is no reply.
     *
     * Call it with nothing reserved: when the connection ends meanwhile, that is for `reserve` to find. Most kinds of
     * queue know no pings.
     *
     * @param \Closure(string): ?string $answer
     */
    public function answerPings(string $host, \Closure $answer): void;
}
