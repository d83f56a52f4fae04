<?php

declare(strict_types=1);

namespace Shop;

/** The history of `shop/history.py`, from PHP: what the pages of this host have enqueued last. */
final class History
{
    /** Bytes at which a new file is begun; the one before is kept until then. */
    private const LIMIT = 64 * 1024;

    /** Write down how an attempt to enqueue went, whole or not at all: one append is one line. */
    public static function note(string $queue, int $jobs, string $result): void
    {
        $file = Database::path('enqueued.jsonl');
        if (!file_exists($file) && ($made = @fopen($file, 'x')) !== false) {
            fclose($made);
            chmod($file, 0664);
        }
        $line = ['at' => gmdate('Y-m-d\TH:i:sP'), 'queue' => $queue, 'jobs' => $jobs, 'result' => substr($result, 0, 200)];
        @file_put_contents($file, json_encode($line, JSON_INVALID_UTF8_SUBSTITUTE) . "\n", FILE_APPEND);
        clearstatcache(true, $file);
        if (@filesize($file) > self::LIMIT) {
            @rename($file, substr($file, 0, -strlen('.jsonl')) . '.old');
        }
    }

    /** @return list<array{at: string, queue: string, jobs: int, result: string}> the last attempts, the newest first */
    public static function recent(int $count = 10): array
    {
        $lines = @file(Database::path('enqueued.jsonl'), FILE_IGNORE_NEW_LINES | FILE_SKIP_EMPTY_LINES) ?: [];
        $found = array_map(static fn (string $line) => json_decode($line, true), array_slice($lines, -$count));
        return array_reverse(array_filter($found, is_array(...)));
    }
}
