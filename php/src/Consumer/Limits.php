<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * When a worker ends or slows down. $time in seconds, $memory in bytes, $rate in jobs per second.
 *
 * After $memory the child is replaced; after $jobs or $time the worker ends, but not before $minUptime: a supervisor
 * takes an earlier end for a failed start.
 */
final class Limits
{
    public function __construct(
        public readonly ?int $jobs = null,
        public readonly ?float $time = null,
        public readonly ?int $memory = null,
        public readonly ?float $rate = null,
        public readonly float $minUptime = 5.0,
        public readonly bool $once = false,
    ) {
    }
}
