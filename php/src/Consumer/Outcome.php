<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * How a run of a job ended; $error is that of the parked record, $memory the child's in bytes, if it was asked for.
 *
 * $asks is "park" or "retry" when the job said so, $delay the one it asked for. $died when the child did, $replace
 * when the child must not do another job. $event is what
 * Sentry is to be told, and $eventId what the application's own client has told it; $repeated names the error
 * when it was not told again.
 */
final class Outcome
{
    /**
     * @param ?array{class: string, message: string, stack: string} $error
     * @param ?array<string, mixed> $event
     */
    public function __construct(
        public readonly bool $done,
        public readonly string $reason = '',
        public readonly ?array $error = null,
        public readonly int $memory = 0,
        public readonly ?string $asks = null,
        public readonly ?int $delay = null,
        public readonly bool $died = false,
        public readonly bool $replace = false,
        public readonly ?array $event = null,
        public readonly ?string $eventId = null,
        public readonly ?string $repeated = null,
    ) {
    }
}
