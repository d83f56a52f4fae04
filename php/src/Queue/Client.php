<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * One connection to one Kestrel, made at the first command and again after an error.
 *
 * Seconds here, milliseconds on the wire. Every call ends within its time limits. After any error the connection is
 * dropped; what was reserved on it goes back to its queue, so a call that must run on the same connection as an earlier
 * one (`closeRead`, `abortRead`) never connects anew.
 */
interface Client
{
    /** Seconds until a connection must stand. */
    public const CONNECT_TIMEOUT = 2.0;
    /** Seconds until an answer must be complete, after the time that the server was asked to wait for an item. */
    public const READ_TIMEOUT = 5.0;

    public function server(): Server;

    /**
     * Puts `$data` on `$queue`; the server drops it after `$expires` seconds (0: never).
     *
     * After ServerUnavailable the item may be on the queue or not.
     *
     * @throws QueueFull when the server refuses the item
     * @throws ServerUnavailable|ProtocolError
     */
    public function set(string $queue, string $data, float $expires = 0): void;

    /**
     * Returns the next item of `$queue`, or null when there is none within `$wait` seconds.
     *
     * With `$open` the item is only reserved; `$close` confirms the oldest reserved one first, `$abort` puts it back at
     * the head, `$peek` looks without taking. With `$sameConnection` a connection must stand already, otherwise
     * ReservationLost is thrown: a `close` on a new one would be answered, and confirm nothing.
     *
     * @throws ServerUnavailable|ProtocolError|ReservationLost
     */
    public function get(
        string $queue,
        float $wait = 0,
        bool $open = false,
        bool $close = false,
        bool $abort = false,
        bool $peek = false,
        bool $sameConnection = false,
    ): ?string;

    /** Confirms the oldest reserved item of `$queue`. @throws ReservationLost when its connection is gone */
    public function closeRead(string $queue): void;

    /**
     * Puts the oldest reserved item of `$queue` back at its head.
     *
     * @throws ReservationLost when its connection is gone
     */
    public function abortRead(string $queue): void;

    /** Removes `$queue` with everything in it. */
    public function delete(string $queue): void;

    /** Returns the server's version, for example `2.4.1`. */
    public function version(): string;

    /**
     * Returns all numbers of the server by name, for example `queue_shop_mail_items`.
     *
     * @return array<string, string>
     */
    public function stats(): array;

    /** Returns how many items `$queue` holds, without those that are reserved; 0 when it does not exist. */
    public function items(string $queue): int;

    /** Sets how long the next commands may take, in seconds: to connect, and to get the answer. */
    public function limit(float $connect, float $read): void;

    /** Counts the connections made, so that a caller can tell whether two commands used the same one. */
    public function connection(): int;

    /** Says whether the connection stands, as far as that can be known without sending anything. */
    public function connected(): bool;

    /**
     * Returns the connection, to see its end with `stream_select`; null without one, or when it cannot be seen.
     *
     * @return ?resource
     */
    public function stream();

    /** Drops the connection; what is reserved on it goes back to its queue. */
    public function disconnect(): void;
}
