<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** Without a library: the event goes to the parent with the job's result, and the parent has it sent. */
final class OwnReporting implements Reporting
{
    /** @var array<string, mixed> */
    private array $tags = [];
    /** @var ?\Closure(): array<string, array<string, mixed>> */
    private ?\Closure $contexts = null;
    /** @var list<array{int, string, string, array<array-key, mixed>}> */
    private array $lines = [];

    private readonly Repeats $repeats;

    public function __construct()
    {
        $this->repeats = new Repeats();
    }

    public function begin(array $tags, \Closure $contexts): void
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
        // Held back here, since to make an event takes longer than many a job; the parent holds back as well, for a
        // child that is replaced forgets.
        $key = Repeats::key($error['class'], $error['message'], $level, $this->tags['job'] ?? null);
        if ($this->repeats->count($key) === null) {
            return ['repeated' => $key];
        }
        $event = Sentry::event(
            $error['class'],
            $error['message'],
            $level,
            $this->tags,
            $thrown === null ? [] : Sentry::frames($thrown),
            $this->lines,
            $error['stack'],
            $this->contexts === null ? [] : ($this->contexts)(),
            $thrown === null ? [] : Sentry::causes($thrown),
        );
        // The parent refuses a message that is too large, and takes its sender for broken. It is the parent that says
        // how many were held back: it knows of those of the children before, too.
        return ['report' => Sentry::fitting($event)];
    }
}
