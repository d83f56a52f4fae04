<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** What became of an item; a "lost" one is delivered again. $delay in seconds. */
final class End
{
    private const LEVELS = ['done' => 'info', 'retry' => 'warning', 'parked' => 'error', 'lost' => 'warning'];

    public function __construct(
        public readonly string $outcome,
        public readonly ?string $reason = null,
        public readonly ?int $delay = null,
    ) {
    }

    /** The level of the job's line. */
    public function level(): string
    {
        return self::LEVELS[$this->outcome];
    }
}
