<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * What a job knows besides its data.
 *
 * $attempt is 1 for the first try; a job with the same $id may come again, also with the same attempt.
 * $enqueuedAt is in Unix milliseconds. $log writes lines that carry the job's name, id and tenant; those below info
 * are written only when the job fails. $queue is the queue's name on the server.
 */
final class Context
{
    /** @param ?array<string, string> $trace */
    public function __construct(
        public readonly string $job,
        public readonly string $id,
        public readonly string $tenant,
        public readonly int $attempt,
        public readonly int $enqueuedAt,
        public readonly ?array $trace,
        public readonly ?string $environment,
        public readonly ?string $release,
        public readonly Log $log,
        public readonly string $queue = '',
    ) {
    }
}
