<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** The child's end of the connection to its parent. */
final class Pipe
{
    /** Longest text that a job logs in one field, in bytes; the rest is cut off. */
    public const MAX_TEXT = 64 * 1024;

    private const CHUNK = 256 * 1024;

    /** @var resource */
    private $stream;
    private readonly Frames $frames;
    private readonly int $process;
    /** @var list<array{array<string, mixed>, string}> */
    private array $waiting = [];

    /** @param resource $stream */
    public function __construct($stream)
    {
        $this->stream = $stream;
        stream_set_blocking($stream, true);
        stream_set_timeout($stream, 365 * 86400);
        stream_set_chunk_size($stream, self::CHUNK);
        $this->frames = new Frames();
        $this->process = getmypid();
    }

    /** Say whether this is the process that the parent talks to, not a copy that a job made by forking. */
    public function isOurs(): bool
    {
        return getmypid() === $this->process;
    }

    /**
     * Send a message to the parent; say whether that worked. A copy never answers in the child's name.
     *
     * @param array<string, mixed> $head
     */
    public function send(array $head, string $body = ''): bool
    {
        if (!$this->isOurs()) {
            return false;
        }
        $data = Frames::encode($head, $body);
        while ($data !== '') {
            $written = @fwrite($this->stream, $data);
            if ($written === false || $written === 0) {
                return false;
            }
            $data = substr($data, $written);
        }
        return true;
    }

    /**
     * Return the parent's next message, or null when it has gone.
     *
     * @return ?array{array<string, mixed>, string}
     */
    public function receive(): ?array
    {
        while ($this->waiting === []) {
            $data = @fread($this->stream, self::CHUNK);
            if ($data === false || $data === '') {
                if (feof($this->stream)) {
                    return null;
                }
                // A signal, or a job that made the connection non-blocking.
                $read = [$this->stream];
                $none = null;
                @stream_select($read, $none, $none, 60);
                continue;
            }
            $this->waiting = $this->frames->feed($data);
        }
        return array_shift($this->waiting);
    }

    /**
     * Pass a line of the job $of to the parent; a forked copy, which has no parent to talk to, prints it.
     *
     * @param array<string, mixed> $of
     * @param array<array-key, mixed> $fields
     */
    public function log(array $of, string $level, string $event, array $fields): void
    {
        $plain = [];
        foreach ($fields as $name => $content) {
            if ($content !== null) {
                $plain[self::cut((string) $name)] = self::plain($content);
            }
        }
        $event = self::cut($event);
        // An empty list would be no object on the other side.
        $head = ['type' => 'log', 'of' => $of, 'level' => $level, 'event' => $event, 'fields' => (object) $plain];
        if (!$this->send($head)) {
            @fwrite(STDERR, Line::text($level, $event, $of + $plain) . "\n");
        }
    }

    /** Return $content as it is when JSON keeps it, otherwise as text. */
    private static function plain(mixed $content): string|int|float|bool
    {
        if (is_int($content) || is_bool($content) || (is_float($content) && is_finite($content))) {
            return $content;
        }
        return self::cut(Text::of($content));
    }

    private static function cut(string $text): string
    {
        return strlen($text) <= self::MAX_TEXT ? Text::clean($text) : Text::head($text, self::MAX_TEXT - 3) . '…';
    }
}
