<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * One queue: `jobTimeout` and `retryDelays` in seconds, `rateLimit` in jobs per second and worker.
 *
 * A worker ends after `maxJobs` jobs or `maxTime` seconds, and replaces the process that runs jobs when it has more
 * than `maxMemory` bytes. When it has no job of this queue it takes one of the queues in `also`, the first of them
 * first.
 *
 * What only its server heeds: `maxSize`, `maxItemSize` and `maxMemorySize` in bytes, `maxAge` in seconds (null: the
 * server's own choice), and its `fanouts`, queues called NAME+FANOUT that get a copy of every item.
 */
final class QueueSettings
{
    /**
     * @param list<int> $retryDelays
     * @param list<string> $also
     * @param array<mixed> $alert
     * @param list<string> $fanouts
     */
    public function __construct(
        public readonly string $name,
        public readonly string $language = 'python',
        public readonly int $processes = 1,
        public readonly int $maxJobs = 1000,
        public readonly ?int $maxTime = null,
        public readonly ?int $maxMemory = null,
        public readonly int $jobTimeout = 60,
        public readonly array $retryDelays = [],
        public readonly ?int $maxItems = null,
        public readonly ?float $rateLimit = null,
        public readonly array $also = [],
        public readonly array $alert = [],
        public readonly ?int $maxSize = null,
        public readonly ?int $maxItemSize = null,
        public readonly ?int $maxMemorySize = null,
        public readonly ?int $maxAge = null,
        public readonly bool $discardOldWhenFull = false,
        public readonly array $fanouts = [],
        public readonly bool $fanoutOnly = false,
    ) {
    }
}
