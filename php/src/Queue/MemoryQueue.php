<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ReservationLost;

/** The queue `$name` of one memory, as one worker uses it; `$errors` is where `park` writes. */
final class MemoryQueue implements JobQueue
{
    private ?Reservation $held = null;

    public function __construct(
        private readonly string $name,
        private readonly Memory $memory,
        private readonly Server $server,
        private readonly string $errors,
    ) {
    }

    public function name(): string
    {
        return $this->name;
    }

    /** Returns the memory, as if it were a server. */
    public function server(): Server
    {
        return $this->server;
    }

    public function serverCount(): int
    {
        return 1;
    }

    public function reserve(float $wait, ?Reservation $done = null): ?Reservation
    {
        if ($done !== null) {
            $this->done($done);
        }
        $deadline = Clock::now() + $wait;
        while (($body = $this->memory->take($this->name)) === null) {
            // Nobody else can put an item meanwhile: only a delayed one can come.
            $left = min($deadline - Clock::now(), $this->memory->nextDue($this->name));
            if ($deadline <= Clock::now()) {
                return null;
            }
            usleep((int) max(1, $left * 1e6));
        }
        return $this->held = new Reservation($body, $this->server, $this->memory->number(), $this->name);
    }

    /** Returns 0: a memory is never away. */
    public function pause(): float
    {
        return 0.0;
    }

    public function done(Reservation $reservation): void
    {
        $this->check($reservation);
        $this->memory->done($this->name);
        $this->held = null;
    }

    public function park(Reservation $reservation, string $record): void
    {
        $this->check($reservation);
        $this->memory->add($this->errors, $record);
    }

    public function later(Reservation $reservation, string $body, int $delay): void
    {
        $this->check($reservation);
        $this->memory->delay($this->name, $body, $delay);
    }

    public function lost(Reservation $reservation): bool
    {
        return $this->held !== $reservation;
    }

    /** Returns null: there is no connection to look at. */
    public function stream()
    {
        return null;
    }

    public function drop(): void
    {
        if ($this->held !== null) {
            $this->memory->giveBack($this->name, $this->held->body);
            $this->held = null;
        }
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
            throw new ReservationLost('The item was given back; it is delivered again.');
        }
    }
}
