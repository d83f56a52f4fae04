<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Queue;

/**
 * Everything a worker needs to know, from flags, environment and settings file.
 *
 * $rules are by the queue's name on the server; the first queue comes before the others.
 */
final class Plan
{
    /**
     * @param non-empty-array<string, Rules> $rules
     * @param non-empty-list<string> $queues the names of the same queues in the namespace
     */
    public function __construct(
        public readonly array $rules,
        public readonly string $app,
        public readonly array $queues,
        public readonly string $servers,
        public readonly Queue $store,
        public readonly ?string $environment,
        public readonly Limits $limits,
        public readonly int $start,
        public readonly bool $debug,
        public readonly ?string $logFile = null,
        public readonly string $host = '',
        #[\SensitiveParameter]
        public readonly ?string $sentryDsn = null,
    ) {
    }
}
