<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** What holds for the jobs of one queue; both in seconds. */
final class Rules
{
    /** @param list<int> $retryDelays */
    public function __construct(
        public readonly float $jobTimeout = 60,
        public readonly array $retryDelays = [],
    ) {
    }
}
