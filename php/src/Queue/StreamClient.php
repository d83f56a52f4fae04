<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * A client for the memcache protocol as Kestrel speaks it, over a stream socket; needs no extension.
 *
 * Source of the protocol facts: observed on Kestrel 2.4.1.
 */
final class StreamClient implements Client
{
    /** An answer that announces more than this is taken for nonsense, before memory is taken for it. */
    public const MAX_ITEM_BYTES = 256 * 1024 * 1024;

    private const MAX_LINE = 64 * 1024;
    private const CHUNK = 64 * 1024;

    /** @var ?resource */
    private $stream = null;
    private string $buffer = '';
    private float $deadline = INF;
    private int $connection = 0;

    public function __construct(
        private readonly Server $server,
        private float $connectTimeout = self::CONNECT_TIMEOUT,
        private float $readTimeout = self::READ_TIMEOUT,
    ) {
    }

    public function server(): Server
    {
        return $this->server;
    }

    public function set(string $queue, string $data, float $expires = 0): void
    {
        $seconds = self::expiry($expires);
        $this->send('set ' . Names::check($queue) . " 0 $seconds " . strlen($data) . "\r\n$data\r\n");
        $line = $this->line();
        if ($line === 'NOT_STORED') {
            throw new QueueFull(
                "$this->server refused the item for $queue: the queue is full or the item too large.",
            );
        }
        $this->expect($line, 'STORED');
    }

    public function get(
        string $queue,
        float $wait = 0,
        bool $open = false,
        bool $close = false,
        bool $abort = false,
        bool $peek = false,
        bool $sameConnection = false,
    ): ?string {
        $key = self::key($queue, $wait, $open, $close, $abort, $peek);
        if ($sameConnection && !$this->connected()) {
            throw new ReservationLost("The connection to $this->server that held an item of $queue is gone.");
        }
        $this->send("get $key\r\n", max(0.0, $wait), $sameConnection);
        $line = $this->line();
        if ($line === 'END') {
            return null;
        }
        $data = $this->value($line);
        $this->expect($this->line(), 'END');
        return $data;
    }

    public function closeRead(string $queue): void
    {
        $this->get($queue, close: true, sameConnection: true);
    }

    public function abortRead(string $queue): void
    {
        $this->get($queue, abort: true, sameConnection: true);
    }

    public function delete(string $queue): void
    {
        $this->command('delete ' . Names::check($queue), 'DELETED');
    }

    /** Removes every item of `$queue`; reserved ones survive. */
    public function flush(string $queue): void
    {
        $this->command('flush ' . Names::check($queue), 'END');
    }

    public function version(): string
    {
        $this->send("version\r\n");
        $line = $this->line();
        $this->expect(strtok($line, ' '), 'VERSION', $line);
        return substr($line, strlen('VERSION '));
    }

    /** Returns `UP`, `READONLY` or `QUIESCENT`. */
    public function status(): string
    {
        $this->send("status\r\n");
        $line = $this->line();
        if (!in_array($line, ['UP', 'READONLY', 'QUIESCENT', 'DOWN'], true)) {
            $this->unexpected($line);
        }
        return $line;
    }

    public function stats(): array
    {
        $this->send("stats\r\n");
        $found = [];
        while (($line = $this->line()) !== 'END') {
            $parts = explode(' ', $line, 3);
            $this->expect($parts[0], 'STAT', $line);
            $found[$parts[1] ?? ''] = $parts[2] ?? '';
        }
        return $found;
    }

    public function items(string $queue): int
    {
        return (int) ($this->stats()['queue_' . Names::check($queue) . '_items'] ?? 0);
    }

    public function limit(float $connect, float $read): void
    {
        $this->connectTimeout = $connect;
        $this->readTimeout = $read;
    }

    public function connection(): int
    {
        return $this->connection;
    }

    /**
     * Says whether the connection stands, without sending anything.
     *
     * Between two commands a server has nothing to say: what can be read then is the connection's end, or the late half
     * of an answer that nobody waits for any more.
     */
    public function connected(): bool
    {
        if ($this->stream === null) {
            return false;
        }
        if ($this->buffer !== '' || @fread($this->stream, 1) !== '' || stream_get_meta_data($this->stream)['eof']) {
            $this->disconnect();
            return false;
        }
        return true;
    }

    public function stream()
    {
        return $this->stream;
    }

    public function disconnect(): void
    {
        if ($this->stream !== null) {
            fclose($this->stream);
        }
        $this->stream = null;
        $this->buffer = '';
    }

    /**
     * Returns the seconds of `set`; from a million on the server takes the number for a date.
     *
     * @internal
     */
    public static function expiry(float $expires): int
    {
        if (!($expires >= 0 && $expires <= 999_999)) {
            throw new \ValueError("expires is from 0 to 999,999 seconds, not $expires");
        }
        return (int) ceil($expires);
    }

    /**
     * Returns a queue's name with Kestrel's options.
     *
     * @internal
     */
    public static function key(string $queue, float $wait, bool $open, bool $close, bool $abort, bool $peek): string
    {
        if ((int) $peek + (int) $abort + (int) ($open || $close) > 1) {
            throw new \ValueError('peek and abort go with nothing else');
        }
        return Names::check($queue)
            . ($wait > 0 ? '/t=' . round($wait * 1000) : '')
            . ($close ? '/close' : '')
            . ($open ? '/open' : '')
            . ($abort ? '/abort' : '')
            . ($peek ? '/peek' : '');
    }

    private function connect(): void
    {
        $context = stream_context_create(['socket' => ['tcp_nodelay' => true]]);
        $address = "tcp://{$this->server->address()}:{$this->server->port}";
        error_clear_last();
        $made = @stream_socket_client(
            $address,
            $code,
            $message,
            max(0.001, $this->connectTimeout),
            STREAM_CLIENT_CONNECT,
            $context,
        );
        if ($made === false) {
            // A host that cannot be resolved has no code, and its reason only in PHP's warning.
            $said = $message !== '' ? $message : (error_get_last()['message'] ?? 'no reason');
            $said = preg_replace('/^.*getaddrinfo for \S+ failed: /', '', $said);
            throw new ServerUnavailable("$this->server is not reachable: " . ucfirst((string) $said) . '.');
        }
        stream_set_blocking($made, false);
        stream_set_read_buffer($made, 0);
        stream_set_write_buffer($made, 0);
        if (function_exists('socket_import_stream')) {
            $socket = @socket_import_stream($made);
            if ($socket instanceof \Socket) {
                // A server that lost its power says nothing; a minute later its connection counts as gone.
                @socket_set_option($socket, SOL_SOCKET, SO_KEEPALIVE, 1);
                foreach ([['TCP_KEEPIDLE', 30], ['TCP_KEEPINTVL', 10], ['TCP_KEEPCNT', 3]] as [$option, $value]) {
                    if (defined($option)) {
                        @socket_set_option($socket, SOL_TCP, constant($option), $value);
                    }
                }
            }
        }
        $this->stream = $made;
        $this->buffer = '';
        $this->connection++;
    }

    /** Sends a request and starts the clock for its answer: `$extra` seconds and the usual limit. */
    private function send(string $request, float $extra = 0.0, bool $sameConnection = false): void
    {
        if (!$sameConnection && !$this->connected()) {
            $this->connect();
        }
        $this->deadline = Clock::now() + $this->readTimeout + $extra;
        $size = strlen($request);
        $sent = 0;
        while ($sent < $size) {
            $count = @fwrite($this->stream, $sent === 0 ? $request : substr($request, $sent, 1024 * 1024));
            if ($count === false) {
                $this->gone('the server closed the connection');
            }
            $sent += $count;
            if ($sent < $size) {
                $this->await(forWriting: true);
            }
        }
    }

    private function command(string $request, string $answer): void
    {
        $this->send("$request\r\n");
        $this->expect($this->line(), $answer);
    }

    /** Returns the next line of the answer without its end. */
    private function line(): string
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

    /** Returns the data that follows a `VALUE <key> 0 <bytes>` line. */
    private function value(string $header): string
    {
        $parts = explode(' ', $header);
        if ($parts[0] !== 'VALUE' || count($parts) !== 4 || !ctype_digit($parts[3]) || strlen($parts[3]) > 12) {
            $this->unexpected($header);
        }
        $size = (int) $parts[3];
        if ($size > self::MAX_ITEM_BYTES) {
            $this->unexpected($header);
        }
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

    /** Waits for more of the answer and reads it. */
    private function receive(): void
    {
        do {
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
        while (true) {
            $left = $this->deadline - Clock::now();
            if ($left <= 0) {
                $this->gone('timed out');
            }
            $read = $forWriting ? null : [$this->stream];
            $write = $forWriting ? [$this->stream] : null;
            $except = null;
            $seconds = (int) $left;
            // A signal interrupts the wait; its handler has run by then.
            $ready = @stream_select($read, $write, $except, $seconds, (int) (($left - $seconds) * 1e6));
            if ($ready > 0) {
                return;
            }
            if ($ready === false) {
                usleep(500);
                return;
            }
        }
    }

    private function expect(string|false $word, string $wanted, ?string $line = null): void
    {
        if ($word !== $wanted) {
            $this->unexpected($line ?? (string) $word);
        }
    }

    private function unexpected(string $line): never
    {
        $this->disconnect();
        $shown = Text::quote($line);
        if (str_starts_with($line, 'SERVER_ERROR')) {
            // This is how a server answers that was told to be read-only or quiescent.
            throw new ServerUnavailable("$this->server refused with $shown; its status is not UP.");
        }
        throw new ProtocolError("$this->server answered $shown, which was not expected.");
    }

    private function gone(string $reason): never
    {
        $this->disconnect();
        throw new ServerUnavailable("$this->server gave no answer: $reason.");
    }
}
