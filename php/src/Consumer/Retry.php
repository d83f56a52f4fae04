<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Thrown by a job that cannot be done now: it is tried again after $delay seconds.
 *
 * Only a delay that the queue is configured with can be had; without one, or with another, it is the next of
 * the queue's delays. How often a job is tried is the same as for any failure.
 */
final class Retry extends \Exception
{
    public function __construct(
        public readonly ?int $delay = null,
        public readonly string $reason = 'it gave no reason',
        ?\Throwable $previous = null,
    ) {
        parent::__construct($reason, 0, $previous);
    }

    /**
     * Return after how many seconds a job that failed at $attempt is tried again; null: it is parked.
     *
     * @param list<int> $delays
     */
    public static function nextDelay(int $attempt, array $delays, ?int $wanted = null): ?int
    {
        if ($attempt > count($delays)) {
            return null;
        }
        return in_array($wanted, $delays, true) ? $wanted : $delays[$attempt - 1];
    }
}
