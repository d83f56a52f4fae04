<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** The debug lines of the job in hand: at most so many lines and bytes, the newest. */
final class KeptBack
{
    public const MAX_LINES = 1000;
    public const MAX_BYTES = 256 * 1024;

    /** @var \SplQueue<array{int, string, array<array-key, mixed>, int}> */
    private \SplQueue $kept;
    private int $bytes = 0;
    private int $dropped = 0;

    public function __construct(
        private readonly int $mostLines = self::MAX_LINES,
        private readonly int $mostBytes = self::MAX_BYTES,
    ) {
        $this->kept = new \SplQueue();
    }

    /** Forget everything: the next job begins. */
    public function clear(): void
    {
        if ($this->dropped > 0 || !$this->kept->isEmpty()) {
            $this->kept = new \SplQueue();
            $this->bytes = 0;
            $this->dropped = 0;
        }
    }

    /**
     * Keep a line, dropping the oldest ones when there are too many.
     *
     * @param array<array-key, mixed> $fields
     */
    public function add(string $event, array $fields): void
    {
        $size = strlen($event);
        foreach ($fields as $name => $content) {
            $size += strlen((string) $name) + (is_string($content) ? strlen($content) : 20);
        }
        $this->kept->enqueue([(int) (microtime(true) * 1000), $event, $fields, $size]);
        $this->bytes += $size;
        while (!$this->kept->isEmpty() && (count($this->kept) > $this->mostLines || $this->bytes > $this->mostBytes)) {
            $this->bytes -= $this->kept->dequeue()[3];
            $this->dropped++;
        }
    }

    /** How many lines had to be dropped. */
    public function dropped(): int
    {
        return $this->dropped;
    }

    /**
     * Return what is kept: Unix milliseconds, event, fields; the oldest first.
     *
     * @return list<array{int, string, array<array-key, mixed>}>
     */
    public function lines(): array
    {
        $lines = [];
        foreach ($this->kept as [$at, $event, $fields]) {
            $lines[] = [$at, $event, $fields];
        }
        return $lines;
    }

    /** Write the lines with the time at which they were logged; how many are missing comes first. */
    public function write(Writer $writer, Log $log): void
    {
        if ($this->dropped > 0) {
            $log->warning('lines dropped', ['count' => $this->dropped]);
        }
        foreach ($this->kept as [$at, $event, $fields]) {
            $writer->write('debug', $event, $fields, $at);
        }
    }
}
