<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** Thrown by a job that will never work: it is parked at once, with the reason for its reader. */
final class Park extends \Exception
{
    public function __construct(public readonly string $reason = 'it gave no reason', ?\Throwable $previous = null)
    {
        parent::__construct($reason, 0, $previous);
    }
}
