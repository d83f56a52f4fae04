<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\QueueError;
use KestrelStack\Queue\Errors\ReservationLost;

/**
 * The queue of the tube `$name`, as one worker uses it; `$errors` is the tube where `park` writes.
 *
 * It reads on one connection and writes on another, so that a failed write never costs the reservation.
 */
final class BeanstalkdQueue implements JobQueue
{
    private readonly BeanstalkdClient $reader;
    private readonly BeanstalkdClient $writer;
    private readonly Rotation $rotation;
    private ?Reservation $held = null;

    /** @param list<int> $delays whose tubes are watched as well */
    public function __construct(
        private readonly string $name,
        private readonly Server $server,
        private readonly int $ttr,
        private readonly string $errors,
        array $delays = [],
    ) {
        $tubes = array_map(static fn (int $delay): string => Names::retry($name, $delay), $delays);
        $this->reader = new BeanstalkdClient($server, [$name, ...$tubes]);
        $this->writer = new BeanstalkdClient($server);
        $this->rotation = new Rotation([$server]);
    }

    public function name(): string
    {
        return $this->name;
    }

    public function server(): Server
    {
        return $this->server;
    }

    public function serverCount(): int
    {
        return 1;
    }

    /** `$wait` is rounded up: beanstalkd knows whole seconds. */
    public function reserve(float $wait, ?Reservation $done = null): ?Reservation
    {
        if ($done !== null) {
            $this->done($done);
        }
        $this->held = null;
        try {
            $found = $this->reader->reserve((int) ceil($wait));
        } catch (QueueError $error) {
            $this->rotation->failed();
            throw $error;
        }
        $this->rotation->answered();
        if ($found === null) {
            return null;
        }
        return $this->held = new Reservation($found[1], $this->server, $found[0], $this->name);
    }

    public function pause(): float
    {
        return $this->rotation->pause();
    }

    public function done(Reservation $reservation): void
    {
        $this->check($reservation);
        $this->held = null;
        try {
            $deleted = $this->reader->delete($reservation->ticket);
            $said = 'Its time was over.';
        } catch (QueueError $error) {
            $deleted = false;
            $said = $error->getMessage();
        }
        if (!$deleted) {
            $this->reader->drop();
            throw new ReservationLost("$said The item may be delivered again.");
        }
    }

    public function park(Reservation $reservation, string $record): void
    {
        $this->check($reservation);
        $this->writer->put($this->errors, $record, 0, $this->ttr, KestrelQueue::WRITE_TIMEOUT);
    }

    /** Into the tube of `$delay`, delayed by beanstalkd itself: no mover is needed. */
    public function later(Reservation $reservation, string $body, int $delay): void
    {
        $this->check($reservation);
        $tube = Names::retry($this->name, $delay);
        $this->writer->put($tube, $body, $delay, $this->ttr, KestrelQueue::WRITE_TIMEOUT);
    }

    public function lost(Reservation $reservation): bool
    {
        return $this->held !== $reservation || !$this->reader->connected();
    }

    public function stream()
    {
        return $this->reader->stream();
    }

    public function drop(): void
    {
        $this->held = null;
        $this->reader->drop();
        $this->writer->drop();
    }

    public function pingsDue(): bool
    {
        return false;
    }

    public function answerPings(string $host, \Closure $answer): void
    {
    }

    private function check(Reservation $reservation): void
    {
        if ($this->lost($reservation)) {
            $this->reader->drop();
            throw new ReservationLost("The connection to $this->server was lost; the item is delivered again.");
        }
    }
}
