<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** Without a library: the event goes to the parent with the job's result, and the parent has it sent. */
final class OwnReporting implements Reporting
{
    /** @var array<string, mixed> */
    private array $tags = [];
    /** @var array<string, array<string, mixed>> */
    private array $contexts = [];
    /** @var list<array{int, string, string, array<array-key, mixed>}> */
    private array $lines = [];

    public function begin(array $tags, array $contexts = []): void
    {
        $this->tags = $tags;
        $this->contexts = $contexts;
        $this->lines = [];
    }

    public function crumb(string $level, string $event, array $fields): void
    {
        $this->lines[] = [(int) (microtime(true) * 1000), $level, $event, $fields];
        if (count($this->lines) >= 2 * Sentry::MAX_CRUMBS) {
            $this->lines = array_slice($this->lines, -Sentry::MAX_CRUMBS);
        }
    }

    public function failed(?\Throwable $thrown, array $error, string $level): array
    {
        return ['report' => Sentry::event(
            $error['class'],
            $error['message'],
            $level,
            $this->tags,
            $thrown === null ? [] : Sentry::frames($thrown),
            $this->lines,
            $error['stack'],
            $this->contexts,
            $thrown === null ? [] : Sentry::causes($thrown),
        )];
    }
}
