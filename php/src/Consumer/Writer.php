<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Writes lines to a stream, or to a file that `reopen` opens again.
 *
 * With $debug it writes every level, as text; otherwise from info on, as JSON.
 */
final class Writer
{
    /** @var resource */
    private $stream;

    /**
     * @param ?resource $stream where to write without a file; stderr by default
     * @throws \RuntimeException when the file cannot be opened for appending
     */
    public function __construct(
        public readonly bool $debug = false,
        $stream = null,
        public readonly ?string $file = null,
    ) {
        $this->stream = $file === null ? $stream ?? STDERR : self::open($file);
    }

    /** Return the log that writes here. */
    public function log(): Log
    {
        return new Log($this->event(...));
    }

    /**
     * Write one event, unless its level is too low.
     *
     * @param array<array-key, mixed> $fields
     */
    public function event(string $level, string $event, array $fields): void
    {
        if ($this->debug || $level !== 'debug') {
            $this->write($level, $event, $fields);
        }
    }

    /**
     * Write one event of any level; $at is when it happened, in Unix milliseconds (null: now).
     *
     * @param array<array-key, mixed> $fields
     */
    public function write(string $level, string $event, array $fields, ?int $at = null): void
    {
        $line = ($this->debug ? Line::text(...) : Line::json(...))($level, $event, $fields, $at) . "\n";
        // A full disk or a closed pipe must not stop the work that the lines are about.
        while ($line !== '') {
            $written = @fwrite($this->stream, $line);
            if ($written === false || $written === 0) {
                return;
            }
            $line = substr($line, $written);
        }
    }

    /**
     * Open the file again, by its name.
     *
     * @throws \RuntimeException when that fails; the old one is used on
     */
    public function reopen(): void
    {
        if ($this->file !== null) {
            $opened = self::open($this->file);
            fclose($this->stream);
            $this->stream = $opened;
        }
    }

    /** @return resource */
    private static function open(string $file)
    {
        $before = umask(0027);
        $stream = @fopen($file, 'ae');
        umask($before);
        if ($stream === false) {
            throw new \RuntimeException(preg_replace('/^.*: /', '', error_get_last()['message'] ?? 'unknown'));
        }
        stream_set_write_buffer($stream, 0);
        return $stream;
    }
}
