<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;

/**
 * A client for the memcache protocol as Kestrel speaks it, over a stream socket; needs no extension.
 *
 * Source of the protocol facts: observed on Kestrel 2.4.1.
 */
final class StreamClient implements Client
{
    private readonly Connection $wire;

    public function __construct(
        private readonly Server $server,
        private float $connectTimeout = self::CONNECT_TIMEOUT,
        private float $readTimeout = self::READ_TIMEOUT,
    ) {
        $this->wire = new Connection($server);
    }

    public function server(): Server
    {
        return $this->server;
    }

    public function set(string $queue, string $data, float $expires = 0): void
    {
        $seconds = self::expiry($expires);
        $this->send('set ' . Names::check($queue) . " 0 $seconds " . strlen($data) . "\r\n$data\r\n");
        $line = $this->wire->line();
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
        $line = $this->wire->line();
        if ($line === 'END') {
            return null;
        }
        $data = $this->value($line);
        $this->expect($this->wire->line(), 'END');
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
        $line = $this->wire->line();
        $this->expect(explode(' ', $line)[0], 'VERSION', $line);
        return substr($line, strlen('VERSION '));
    }

    /** Returns `UP`, `READONLY` or `QUIESCENT`. */
    public function status(): string
    {
        $this->send("status\r\n");
        $line = $this->wire->line();
        if (!in_array($line, ['UP', 'READONLY', 'QUIESCENT', 'DOWN'], true)) {
            $this->wire->unexpected($line);
        }
        return $line;
    }

    public function stats(): array
    {
        $this->send("stats\r\n");
        $found = [];
        while (($line = $this->wire->line()) !== 'END') {
            $parts = explode(' ', $line, 3);
            $this->expect($parts[0], 'STAT', $line);
            $found[$parts[1] ?? ''] = $parts[2] ?? '';
        }
        return $found;
    }

    public function items(string $queue): int
    {
        // Not by `stats`, which has the numbers of every queue; and nothing that takes, since Kestrel makes a queue
        // that is asked for an item.
        $this->send('dump_stats ' . Names::check($queue) . "\r\n");
        $line = $this->wire->line();
        $this->expect(explode(' ', $line)[0], 'queue', $line);
        $items = 0;
        while (($line = $this->wire->line()) !== 'END') {
            if (preg_match('/\A\s*items=([0-9]{1,18})\z/', $line, $match) === 1) {
                $items = (int) $match[1];
            }
        }
        return $items;
    }

    public function limit(float $connect, float $read): void
    {
        $this->connectTimeout = $connect;
        $this->readTimeout = $read;
    }

    public function connection(): int
    {
        return $this->wire->number();
    }

    public function connected(): bool
    {
        return $this->wire->isOpen();
    }

    public function stream()
    {
        return $this->wire->stream();
    }

    public function disconnect(): void
    {
        $this->wire->close();
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

    /** Sends a request and starts the clock for its answer: `$extra` seconds and the usual limit. */
    private function send(string $request, float $extra = 0.0, bool $sameConnection = false): void
    {
        if (!$sameConnection && !$this->wire->isOpen()) {
            $this->wire->open($this->connectTimeout);
        }
        $this->wire->send($request, $this->readTimeout + $extra);
    }

    private function command(string $request, string $answer): void
    {
        $this->send("$request\r\n");
        $this->expect($this->wire->line(), $answer);
    }

    /** Returns the data that follows a `VALUE <key> 0 <bytes>` line. */
    private function value(string $header): string
    {
        $parts = explode(' ', $header);
        if ($parts[0] !== 'VALUE' || count($parts) !== 4) {
            $this->wire->unexpected($header);
        }
        return $this->wire->data($parts[3], $header);
    }

    private function expect(string $word, string $wanted, ?string $line = null): void
    {
        if ($word !== $wanted) {
            $this->wire->unexpected($line ?? $word);
        }
    }
}
