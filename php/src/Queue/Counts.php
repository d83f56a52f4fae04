<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * How many items a queue has.
 *
 * `ready` are free to take, `reserved` in workers' hands, `delayed` wait for a delay (by its seconds), and `parked` are
 * in the error queue.
 */
final class Counts
{
    /** @param array<int, int> $delayed */
    public function __construct(
        public readonly int $ready = 0,
        public readonly int $reserved = 0,
        public readonly array $delayed = [],
        public readonly int $parked = 0,
    ) {
    }
}
