<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * Every server in turn, beginning with number `$start` modulo their count.
 *
 * A server that failed is left out until its backoff is over; the others go on being visited.
 */
final class Rotation implements \Countable
{
    private int $at;
    /** @var list<Backoff> */
    private array $backoffs = [];
    /** @var list<float> */
    private array $notBefore = [];
    /** @var \Closure(): float */
    private readonly \Closure $clock;

    /**
     * @param non-empty-list<Server> $servers
     * @param ?\Closure(): float $clock in seconds, never set back
     * @param ?\Closure(): Backoff $backoff
     */
    public function __construct(
        private readonly array $servers,
        int $start = 0,
        ?\Closure $clock = null,
        ?\Closure $backoff = null,
    ) {
        $this->at = $start % count($servers);
        $this->clock = $clock ?? Clock::now(...);
        foreach ($servers as $_) {
            $this->backoffs[] = $backoff === null ? new Backoff() : $backoff();
            $this->notBefore[] = -INF;
        }
    }

    public function count(): int
    {
        return count($this->servers);
    }

    /** Returns the server whose turn it is. */
    public function current(): Server
    {
        return $this->servers[$this->at];
    }

    /** Notes that the current server works. */
    public function answered(): void
    {
        $this->backoffs[$this->at]->reset();
        $this->notBefore[$this->at] = -INF;
    }

    /** Notes that the current server does not work, and moves on to the next that may be tried. */
    public function failed(): void
    {
        $this->notBefore[$this->at] = ($this->clock)() + $this->backoffs[$this->at]->next();
        $this->advance();
    }

    /** Moves on to the next server that may be tried; if all are failing, to the one whose wait ends first. */
    public function advance(): void
    {
        $now = ($this->clock)();
        $count = count($this->servers);
        $soonest = ($this->at + 1) % $count;
        for ($step = 1; $step <= $count; $step++) {
            $index = ($this->at + $step) % $count;
            if ($this->notBefore[$index] <= $now) {
                $this->at = $index;
                return;
            }
            if ($this->notBefore[$index] < $this->notBefore[$soonest]) {
                $soonest = $index;
            }
        }
        $this->at = $soonest;
    }

    /** Returns how long to wait before the current server may be tried, in seconds; 0 for at once. */
    public function pause(): float
    {
        return max(0.0, $this->notBefore[$this->at] - ($this->clock)());
    }
}
