<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\JobQueue;
use KestrelStack\Queue\Reservation;
use KestrelStack\Queue\Server;

/**
 * Several queues as one, by priority: takes from the first of them that has an item.
 *
 * Every queue keeps its own connections and visits its servers by itself, so that priority holds among what the
 * servers of one visit have. With nothing to do, the wait is shared by the queues: none is looked at less often than
 * once in that time.
 */
final class PriorityQueue implements JobQueue
{
    /**
     * Seconds until a queue that was empty is looked at again while another has work, if it has several servers.
     *
     * Each look is then a visit to another server, and so many new connections would use up a host's ports.
     */
    private const LOOK_AGAIN = 0.05;

    private JobQueue $asked;
    private ?JobQueue $held = null;
    private bool $idle = false;
    /** @var array<int, float> */
    private array $emptySince = [];

    /** @param non-empty-list<JobQueue> $queues */
    public function __construct(private readonly array $queues)
    {
        $this->asked = $queues[0];
    }

    public function name(): string
    {
        return implode(',', array_map(static fn (JobQueue $queue): string => $queue->name(), $this->queues));
    }

    /** The server that the last `reserve` asked, or that failed. */
    public function server(): Server
    {
        return $this->asked->server();
    }

    /** How many calls of `reserve` without an item mean that there is none. */
    public function serverCount(): int
    {
        return max(array_map(static fn (JobQueue $queue): int => $queue->serverCount(), $this->queues));
    }

    public function reserve(float $wait, ?Reservation $done = null): ?Reservation
    {
        $held = $this->held;
        $this->held = null;
        if ($done !== null && $held !== null && $held !== $this->queues[0]) {
            // First, since nothing may be reserved when this fails.
            $this->asked = $held;
            $held->done($done);
            $done = null;
        }
        // Right after an item all queues are only looked at: waiting for an early one would hold up the others.
        $share = $this->idle ? $wait / count($this->queues) : 0.0;
        $failure = null;
        $failed = $this->asked;
        foreach ($this->queues as $number => $queue) {
            if ($done === null && ($queue->pause() > 0 || $this->justLooked($number))) {
                continue;
            }
            $this->asked = $queue;
            $confirmed = $done;
            $done = null;
            try {
                $found = $queue->reserve($share, $confirmed);
            } catch (ServerUnavailable | ProtocolError $exc) {
                $failure = $exc;
                $failed = $queue;
                continue;
            }
            if ($found !== null) {
                $this->held = $queue;
                $this->idle = false;
                return $found;
            }
            $this->emptySince[$number] = hrtime(true) / 1e9;
        }
        $this->idle = true;
        if ($failure !== null) {
            $this->asked = $failed;
            throw $failure;
        }
        return null;
    }

    public function pause(): float
    {
        return min(array_map(static fn (JobQueue $queue): float => $queue->pause(), $this->queues));
    }

    public function done(Reservation $reservation): void
    {
        $this->holder()->done($reservation);
    }

    public function park(Reservation $reservation, string $record): void
    {
        $this->holder()->park($reservation, $record);
    }

    public function later(Reservation $reservation, string $body, int $delay): void
    {
        $this->holder()->later($reservation, $body, $delay);
    }

    public function lost(Reservation $reservation): bool
    {
        return $this->held === null || $this->held->lost($reservation);
    }

    public function stream(): mixed
    {
        return $this->held?->stream();
    }

    public function drop(): void
    {
        foreach ($this->queues as $queue) {
            $queue->drop();
        }
    }

    /** For the first queue: the others have workers of their own. */
    public function pingsDue(): bool
    {
        return $this->queues[0]->pingsDue();
    }

    public function answerPings(string $host, \Closure $answer): void
    {
        $this->queues[0]->answerPings($host, $answer);
    }

    private function justLooked(int $number): bool
    {
        return !$this->idle
            && isset($this->emptySince[$number])
            && $this->queues[$number]->serverCount() > 1
            && hrtime(true) / 1e9 - $this->emptySince[$number] < self::LOOK_AGAIN;
    }

    private function holder(): JobQueue
    {
        return $this->held ?? throw new \LogicException('nothing is reserved');
    }
}
