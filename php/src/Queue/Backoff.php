<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * Waiting times in seconds that double from `$first` to `$limit`, each shortened at random by up to a half.
 *
 * The chance keeps a hundred workers from knocking at the same moment when a server comes back.
 */
final class Backoff
{
    private int $failures = 0;

    /** @param ?\Closure(): float $chance from 0 to 1 */
    public function __construct(
        private readonly float $first = 0.2,
        private readonly float $limit = 5.0,
        private readonly ?\Closure $chance = null,
    ) {
    }

    /** Returns how long to wait after one more failure, in seconds. */
    public function next(): float
    {
        $wait = min($this->limit, $this->first * 2 ** $this->failures);
        $this->failures++;
        $chance = $this->chance === null ? mt_rand() / mt_getrandmax() : ($this->chance)();
        return $wait * (1 - $chance / 2);
    }

    /** Begins with the shortest wait again. */
    public function reset(): void
    {
        $this->failures = 0;
    }
}
