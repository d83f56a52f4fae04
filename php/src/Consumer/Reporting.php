<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** What the process that runs jobs does for Sentry. */
interface Reporting
{
    /**
     * Begin a job: what is kept of the one before is forgotten.
     *
     * @param array<string, mixed> $tags
     * @param \Closure(): array<string, array<string, mixed>> $contexts makes what an event has of a job beside its
     *     tags; most jobs have no event
     */
    public function begin(array $tags, \Closure $contexts): void;

    /**
     * Keep a line that the job logs.
     *
     * @param array<array-key, mixed> $fields
     */
    public function crumb(string $level, string $event, array $fields): void;

    /**
     * Return what the job's result says of its failure.
     *
     * @param array{class: string, message: string, stack: string} $error
     * @return array<string, mixed>
     */
    public function failed(?\Throwable $thrown, array $error, string $level): array;
}
