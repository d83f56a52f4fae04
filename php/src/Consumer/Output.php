<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * What jobs print: two pipes that every child gets as stdout and stderr, turned into log lines.
 *
 * The pipes belong to the worker and outlive a child, so that a process which a job left behind can go on
 * printing.
 */
final class Output
{
    /** Longer lines are logged in pieces of this many bytes. */
    public const MAX_LINE = 8 * 1024;
    /** So many bytes of a job's stderr are kept, to be parked with the job if its process dies. */
    public const TAIL = 8 * 1024;

    private const CHUNK = 64 * 1024;
    private const AT_ONCE = 32;

    /** @var array<string, resource> */
    private array $read = [];
    /** @var array<string, resource> */
    private array $write = [];
    /** @var array<string, string> */
    private array $partial = ['stdout' => '', 'stderr' => ''];
    private string $tail = '';

    public function __construct(private Log $log)
    {
        foreach (['stdout', 'stderr'] as $stream) {
            [$this->read[$stream], $this->write[$stream]] = self::pipe();
        }
    }

    /**
     * The descriptor for a child's stdout.
     *
     * @return resource
     */
    public function stdout()
    {
        return $this->write['stdout'];
    }

    /**
     * The descriptor for a child's stderr.
     *
     * @return resource
     */
    public function stderr()
    {
        return $this->write['stderr'];
    }

    /**
     * Return the streams to wait for.
     *
     * @return list<resource>
     */
    public function streams(): array
    {
        return array_values($this->read);
    }

    /** Log from now on with $log's fields: those of the job that starts now. */
    public function begin(Log $log): void
    {
        $this->finish();
        $this->log = $log;
        $this->tail = '';
    }

    /** Log the whole lines that are there; a flood in parts, so that the caller keeps its deadlines. */
    public function drain(): void
    {
        foreach ($this->read as $stream => $pipe) {
            for ($turn = 0; $turn < self::AT_ONCE; $turn++) {
                $data = @fread($pipe, self::CHUNK);
                if ($data === false || $data === '') {
                    break;
                }
                $this->take($stream, $data);
            }
        }
    }

    /** Log everything that is there, also a line without an end. */
    public function finish(): void
    {
        $this->drain();
        foreach ($this->partial as $stream => $rest) {
            if ($rest !== '') {
                $this->partial[$stream] = '';
                $this->line($stream, $rest);
            }
        }
    }

    /** Return the end of what the job printed to stderr. */
    public function tail(): string
    {
        return Text::clean($this->tail);
    }

    private function take(string $stream, string $data): void
    {
        if ($stream === 'stderr') {
            $this->tail = substr($this->tail . $data, -self::TAIL);
        }
        $lines = explode("\n", $this->partial[$stream] . $data);
        $rest = array_pop($lines);
        foreach ($lines as $text) {
            $this->line($stream, $text);
        }
        while (strlen($rest) > self::MAX_LINE) {
            $this->line($stream, substr($rest, 0, self::MAX_LINE));
            $rest = substr($rest, self::MAX_LINE);
        }
        $this->partial[$stream] = $rest;
    }

    private function line(string $stream, string $text): void
    {
        $start = 0;
        do {
            $piece = substr($text, $start, self::MAX_LINE);
            $piece = str_ends_with($piece, "\r") ? substr($piece, 0, -1) : $piece;
            $this->log->info('output', ['stream' => $stream, 'text' => Text::clean($piece)]);
            $start += self::MAX_LINE;
        } while ($start < strlen($text));
    }

    /**
     * Return both ends of a new pipe, the reading one without waiting.
     *
     * PHP cannot make a pipe, but it can open one that has a name. Neither end is passed on to programs by
     * accident ("e").
     *
     * @return array{resource, resource}
     */
    private static function pipe(): array
    {
        $name = sys_get_temp_dir() . '/kestrel-stack-' . bin2hex(random_bytes(12));
        if (@posix_mkfifo($name, 0600)) {
            $read = @fopen($name, 'rne');
            $write = @fopen($name, 'we');
            unlink($name);
            if ($read !== false && $write !== false) {
                stream_set_blocking($read, false);
                stream_set_read_buffer($read, 0);
                return [$read, $write];
            }
        }
        // Nothing can be made in the folder for temporary files. A socket does as well, except that a job's
        // programs cannot open it by the name /dev/stdout.
        $pair = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        if ($pair === false) {
            throw new \RuntimeException('no pipe can be made for what jobs print');
        }
        stream_set_blocking($pair[0], false);
        return $pair;
    }
}
