<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * A client over the extension memcached, for applications that have it and know its options.
 *
 * It is a memcached object with one server, of which only what Kestrel understands is used: `get` with Kestrel's
 * options in the key, `set`, `delete`, `version` and `stats`. Items are bytes both ways: Kestrel keeps no flags, so
 * that what the extension serialises or compresses by itself would come back as it was stored.
 *
 * What differs from StreamClient: the end of an idle connection is seen at the next command only; `stream` is always
 * null; the time limit is that for each part of an answer; and a fork ends the connection of both processes, which each
 * of them sees as any other end.
 *
 * Source: observed with memcached 3.2.0 and libmemcached 1.1.4 (Debian 12).
 */
final class MemcachedClient implements Client
{
    /**
     * What the client cannot work without; Kestrel closes the connection at some of it, or answers to the wrong call.
     */
    private const FIXED = [
        \Memcached::OPT_BINARY_PROTOCOL => [false, 'OPT_BINARY_PROTOCOL'],
        \Memcached::OPT_COMPRESSION => [false, 'OPT_COMPRESSION'],
        \Memcached::OPT_NOREPLY => [false, 'OPT_NOREPLY'],
        \Memcached::OPT_BUFFER_WRITES => [false, 'OPT_BUFFER_WRITES'],
        \Memcached::OPT_NO_BLOCK => [false, 'OPT_NO_BLOCK'],
        \Memcached::OPT_USE_UDP => [false, 'OPT_USE_UDP'],
        \Memcached::OPT_PREFIX_KEY => ['', 'OPT_PREFIX_KEY'],
        \Memcached::OPT_RETRY_TIMEOUT => [0, 'OPT_RETRY_TIMEOUT'],
    ];
    /** Set by the client for every command. */
    private const OWN = [
        \Memcached::OPT_POLL_TIMEOUT => 'OPT_POLL_TIMEOUT',
        \Memcached::OPT_CONNECT_TIMEOUT => 'OPT_CONNECT_TIMEOUT',
        \Memcached::OPT_SEND_TIMEOUT => 'OPT_SEND_TIMEOUT',
        \Memcached::OPT_RECV_TIMEOUT => 'OPT_RECV_TIMEOUT',
    ];
    /** What the extension says of an answer that Kestrel does not give; 11 is libmemcached's MEMCACHED_ERROR. */
    private const NONSENSE = [
        \Memcached::RES_PROTOCOL_ERROR,
        \Memcached::RES_CLIENT_ERROR,
        \Memcached::RES_UNKNOWN_READ_FAILURE,
        11,
    ];
    /** Seconds of one wait: the extension lets signals wait until the answer has come. */
    private const LONGEST_WAIT = 1.0;
    /** Seconds after which an unused connection is tried before something is written on it. */
    private const IDLE = 1.0;

    private ?\Memcached $memcached = null;
    private int $connection = 0;
    private int $process = 0;
    private float $used = 0.0;
    private int $pollTimeout = 0;

    /**
     * `$options` are memcached's own (`Memcached::OPT_… => value`), besides those that the client sets itself.
     *
     * @param array<int, mixed> $options
     * @throws \ValueError for an option that would break the client
     */
    public function __construct(
        private readonly Server $server,
        private float $connectTimeout = self::CONNECT_TIMEOUT,
        private float $readTimeout = self::READ_TIMEOUT,
        private readonly array $options = [],
    ) {
        if (!extension_loaded('memcached')) {
            throw new \RuntimeException('MemcachedClient needs the extension memcached; install php-memcached.');
        }
        foreach ($options as $option => $value) {
            $name = self::FIXED[$option][1] ?? self::OWN[$option] ?? null;
            if (isset(self::OWN[$option]) || ($name !== null && $value != self::FIXED[$option][0])) {
                throw new \ValueError("The option $name cannot be set: the client needs its own value.");
            }
        }
    }

    public function server(): Server
    {
        return $this->server;
    }

    /** Returns an option of the extension's object, by its `Memcached::OPT_…`. */
    public function option(int $option): mixed
    {
        return ($this->memcached ?? $this->make())->getOption($option);
    }

    public function set(string $queue, string $data, float $expires = 0): void
    {
        $seconds = StreamClient::expiry($expires);
        Names::check($queue);
        $memcached = $this->ready($this->readTimeout);
        $stored = $memcached->set($queue, $data, $seconds);
        $code = $memcached->getResultCode();
        $this->used = Clock::now();
        if ($stored) {
            return;
        }
        if ($code === \Memcached::RES_NOTSTORED) {
            throw new QueueFull(
                "$this->server refused the item for $queue: the queue is full or the item too large.",
            );
        }
        $this->failed($memcached, $code);
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
        $key = StreamClient::key($queue, 0, $open, $close, $abort, $peek);
        if ($sameConnection && !$this->connected()) {
            throw new ReservationLost("The connection to $this->server that held an item of $queue is gone.");
        }
        while (true) {
            $part = min(max(0.0, $wait), self::LONGEST_WAIT);
            // Kestrel takes its options in any order.
            $milliseconds = $part > 0 ? '/t=' . round($part * 1000) : '';
            $found = $this->fetch($key . $milliseconds, $this->readTimeout + $part, $sameConnection);
            $wait -= $part;
            if ($found !== null || $wait <= 0) {
                return $found;
            }
            // What was to be closed is closed.
            $key = StreamClient::key($queue, 0, $open, false, false, $peek);
        }
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
        Names::check($queue);
        $memcached = $this->ready($this->readTimeout);
        if (!$memcached->delete($queue)) {
            $this->failed($memcached, $memcached->getResultCode());
        }
    }

    public function version(): string
    {
        $memcached = $this->ready($this->readTimeout);
        $versions = $memcached->getVersion();
        if ($versions === false || $memcached->getResultCode() !== \Memcached::RES_SUCCESS) {
            $this->failed($memcached, $memcached->getResultCode());
        }
        return (string) reset($versions);
    }

    public function stats(): array
    {
        $memcached = $this->ready($this->readTimeout);
        $stats = $memcached->getStats();
        if ($stats === false || $stats === [] || $memcached->getResultCode() !== \Memcached::RES_SUCCESS) {
            $this->failed($memcached, $memcached->getResultCode());
        }
        return array_map(strval(...), reset($stats));
    }

    public function items(string $queue): int
    {
        Names::check($queue);
        return (int) ($this->stats()["queue_{$queue}_items"] ?? 0);
    }

    public function limit(float $connect, float $read): void
    {
        if ($connect !== $this->connectTimeout) {
            $this->connectTimeout = $connect;
            $this->memcached?->setOption(\Memcached::OPT_CONNECT_TIMEOUT, self::milliseconds($connect));
        }
        $this->readTimeout = $read;
    }

    public function connection(): int
    {
        return $this->connection;
    }

    public function connected(): bool
    {
        if ($this->memcached !== null && $this->process !== getmypid()) {
            // After a fork it belongs to the other process.
            $this->memcached = null;
        }
        return $this->memcached !== null;
    }

    /** Returns null: the extension does not show its connection. */
    public function stream()
    {
        return null;
    }

    public function disconnect(): void
    {
        if ($this->connected()) {
            $this->memcached?->quit();
        }
        $this->memcached = null;
    }

    private function fetch(string $key, float $seconds, bool $sameConnection): ?string
    {
        $memcached = $sameConnection ? $this->memcached : $this->ready($seconds);
        if ($memcached === null) {
            throw new ReservationLost("The connection to $this->server is gone.");
        }
        $this->allow($memcached, $seconds);
        $found = $memcached->get($key);
        $code = $memcached->getResultCode();
        $this->used = Clock::now();
        if ($code === \Memcached::RES_SUCCESS && is_string($found)) {
            return $found;
        }
        // A refusal of the server has this code as well; the extension has dropped its connection then.
        if ($code === \Memcached::RES_NOTFOUND && $memcached->getLastErrorCode() === \Memcached::RES_SUCCESS) {
            return null;
        }
        $this->failed($memcached, $code);
    }

    /** Returns the connection, which may have to be made, with the time that the next answer may take. */
    private function ready(float $seconds): \Memcached
    {
        if ($this->connected() && Clock::now() - $this->used > self::IDLE) {
            // What is written on a connection that has ended meanwhile would be lost, and said to be.
            assert($this->memcached !== null);
            $this->allow($this->memcached, min($seconds, $this->readTimeout));
            if ($this->memcached->getVersion() === false) {
                $this->disconnect();
            }
        }
        $memcached = $this->memcached ?? $this->make();
        $this->allow($memcached, $seconds);
        return $memcached;
    }

    private function make(): \Memcached
    {
        // Never a persistent one: its reserved items would stay reserved after the request.
        $memcached = new \Memcached();
        foreach (self::FIXED as $option => [$value]) {
            if ($option !== \Memcached::OPT_PREFIX_KEY) {
                $memcached->setOption($option, $value);
            }
        }
        $memcached->setOptions($this->options + [\Memcached::OPT_TCP_NODELAY => true]);
        $memcached->setOption(\Memcached::OPT_CONNECT_TIMEOUT, self::milliseconds($this->connectTimeout));
        // One server: of several the extension would choose by the key, and `close` elsewhere than it opened.
        $memcached->addServer($this->server->host, $this->server->port);
        $this->memcached = $memcached;
        $this->process = (int) getmypid();
        $this->pollTimeout = 0;
        $this->used = Clock::now();
        $this->connection++;
        return $memcached;
    }

    /** Sets how long the extension waits for the socket; less than the server was asked to wait would lose items. */
    private function allow(\Memcached $memcached, float $seconds): void
    {
        $milliseconds = self::milliseconds($seconds);
        if ($milliseconds !== $this->pollTimeout) {
            $memcached->setOption(\Memcached::OPT_POLL_TIMEOUT, $milliseconds);
            $this->pollTimeout = $milliseconds;
        }
    }

    private function failed(\Memcached $memcached, int $code): never
    {
        $error = $memcached->getLastErrorCode();
        $code = $code === \Memcached::RES_NOTFOUND ? $error : $code;
        // libmemcached's own message has its addresses in memory and its source files.
        $message = (string) $memcached->getLastErrorMessage();
        $said = (string) preg_replace('/^\(0x[0-9a-f]+\) |,\s+host: .*$/s', '', $message);
        $this->disconnect();
        if ($code === \Memcached::RES_SERVER_ERROR) {
            throw new ServerUnavailable("$this->server refused with " . Text::quote($said) . '; its status is not UP.');
        }
        if (in_array($code, self::NONSENSE, true)) {
            throw new ProtocolError("$this->server answered " . Text::quote($said) . ', which was not expected.');
        }
        if ($code === \Memcached::RES_TIMEOUT) {
            $said = 'timed out';
        }
        throw new ServerUnavailable("$this->server gave no answer: $said.");
    }

    private static function milliseconds(float $seconds): int
    {
        return max(1, (int) ceil($seconds * 1000));
    }
}
