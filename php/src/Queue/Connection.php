<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * A connection to a server that answers in lines and counted bytes, with a time limit for every answer.
 *
 * After any error it is closed: a reply that was read by half would be taken for the answer to the next command.
 *
 * @internal
 */
final class Connection
{
    /** An answer that announces more than this is taken for nonsense, before memory is taken for it. */
    public const MAX_DATA = 256 * 1024 * 1024;

    private const MAX_LINE = 64 * 1024;
    private const CHUNK = 64 * 1024;

    /** @var ?resource */
    private $stream = null;
    private string $buffer = '';
    private float $deadline = INF;
    private int $process = 0;
    private int $number = 0;

    public function __construct(public readonly Server $server)
    {
    }

    /** Counts how often it was opened. */
    public function number(): int
    {
        return $this->number;
    }

    /** @return ?resource */
    public function stream()
    {
        return $this->stream;
    }

    /**
     * Says whether it stands, without sending anything.
     *
     * Between two commands a server has nothing to say: what can be read then is the connection's end, or the late half
     * of an answer that nobody waits for any more. After a fork it belongs to the other process.
     */
    public function isOpen(): bool
    {
        if ($this->stream === null) {
            return false;
        }
        if (
            $this->process !== getmypid()
            || $this->buffer !== ''
            || @fread($this->stream, 1) !== ''
            || stream_get_meta_data($this->stream)['eof']
        ) {
            $this->close();
            return false;
        }
        return true;
    }

    /** @throws ServerUnavailable when it does not stand after `$timeout` seconds */
    public function open(float $timeout): void
    {
        $this->close();
        $context = stream_context_create(['socket' => ['tcp_nodelay' => true]]);
        $address = "tcp://{$this->server->address()}:{$this->server->port}";
        error_clear_last();
        $made = @stream_socket_client($address, $_, $said, max(0.001, $timeout), STREAM_CLIENT_CONNECT, $context);
        if ($made === false) {
            // Of a host that is not found PHP says why only in its warning.
            $said = $said !== '' ? $said : error_get_last()['message'] ?? 'no reason';
            $said = (string) preg_replace('/^.*getaddrinfo for \S+ failed: /', '', $said);
            $said = str_contains($said, 'timed out') ? 'timed out' : $said;
            throw new ServerUnavailable("$this->server is not reachable: $said.");
        }
        stream_set_blocking($made, false);
        stream_set_read_buffer($made, 0);
        stream_set_write_buffer($made, 0);
        self::keepAlive($made);
        $this->stream = $made;
        $this->process = (int) getmypid();
        $this->number++;
    }

    /** Sends bytes and starts the clock for the answer, of `$seconds`. */
    public function send(string $bytes, float $seconds): void
    {
        $this->deadline = Clock::now() + $seconds;
        $size = strlen($bytes);
        $sent = 0;
        while (true) {
            if ($this->stream === null) {
                $this->gone('the connection was closed');
            }
            $count = @fwrite($this->stream, $sent === 0 ? $bytes : substr($bytes, $sent, 1024 * 1024));
            if ($count === false) {
                $this->gone('the server closed the connection');
            }
            $sent += $count;
            if ($sent >= $size) {
                return;
            }
            $this->await(forWriting: true);
        }
    }

    /** Returns the next line of the answer without its end. */
    public function line(): string
    {
        $start = 0;
        while (($end = strpos($this->buffer, "\n", $start)) === false) {
            $start = strlen($this->buffer);
            if ($start > self::MAX_LINE) {
                $this->unexpected($this->buffer);
            }
            $this->receive();
        }
        $line = substr($this->buffer, 0, $end > 0 && $this->buffer[$end - 1] === "\r" ? $end - 1 : $end);
        $this->buffer = substr($this->buffer, $end + 1);
        return $line;
    }

    /** Returns so many bytes as the number `$size` in the line `$header` says; a line's end follows them. */
    public function data(string $size, string $header): string
    {
        if (!ctype_digit($size) || strlen($size) > 12 || (int) $size > self::MAX_DATA) {
            $this->unexpected($header);
        }
        $size = (int) $size;
        while (strlen($this->buffer) < $size + 2) {
            $this->receive();
        }
        if (substr_compare($this->buffer, "\r\n", $size, 2) !== 0) {
            $this->unexpected(substr($this->buffer, $size, 20));
        }
        $data = substr($this->buffer, 0, $size);
        $this->buffer = substr($this->buffer, $size + 2);
        return $data;
    }

    public function close(): void
    {
        if ($this->stream !== null) {
            if ($this->process === getmypid()) {
                // A program that was started meanwhile holds a copy of the socket; without this it would stay open.
                @stream_socket_shutdown($this->stream, STREAM_SHUT_RDWR);
            }
            fclose($this->stream);
        }
        $this->stream = null;
        $this->buffer = '';
    }

    public function unexpected(string $line): never
    {
        $this->close();
        $shown = Text::quote($line);
        if (str_starts_with($line, 'SERVER_ERROR')) {
            // This is how a Kestrel answers that was told to be read-only or quiescent.
            throw new ServerUnavailable("$this->server refused with $shown; its status is not UP.");
        }
        throw new ProtocolError("$this->server answered $shown, which was not expected.");
    }

    /** Waits for more of the answer and reads it. */
    private function receive(): void
    {
        do {
            if ($this->stream === null) {
                $this->gone('the connection was closed');
            }
            $this->await(forWriting: false);
            $received = @fread($this->stream, self::CHUNK);
            if ($received === false || ($received === '' && stream_get_meta_data($this->stream)['eof'])) {
                $this->gone('the server closed the connection');
            }
        } while ($received === '');
        $this->buffer .= $received;
    }

    private function await(bool $forWriting): void
    {
        do {
            $left = $this->deadline - Clock::now();
            if ($left <= 0) {
                $this->gone('timed out');
            }
            $read = $forWriting ? null : [$this->stream];
            $write = $forWriting ? [$this->stream] : null;
            $except = null;
            $seconds = (int) $left;
            // False after a signal, whose handler may have run by then, and also in a process with more than 1,024
            // open files, which select does not know. The latter must not turn into a busy loop.
            $ready = @stream_select($read, $write, $except, $seconds, (int) (($left - $seconds) * 1e6));
            if ($ready === false) {
                usleep(500);
                return;
            }
            if ($this->stream === null) {
                $this->gone('the connection was closed');
            }
        } while ($ready === 0);
    }

    private function gone(string $reason): never
    {
        $this->close();
        throw new ServerUnavailable("$this->server gave no answer: $reason.");
    }

    /**
     * A server that lost its power says nothing; a minute later its connection counts as gone.
     *
     * @param resource $stream
     */
    private static function keepAlive($stream): void
    {
        $socket = function_exists('socket_import_stream') ? @socket_import_stream($stream) : null;
        if ($socket instanceof \Socket) {
            @socket_set_option($socket, SOL_SOCKET, SO_KEEPALIVE, 1);
            // TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT of Linux, which PHP has as constants from 8.4 on.
            foreach ([4 => 30, 5 => 10, 6 => 3] as $option => $value) {
                @socket_set_option($socket, SOL_TCP, $option, $value);
            }
        }
    }
}
