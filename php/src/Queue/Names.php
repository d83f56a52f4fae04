<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidQueueName;

/**
 * The names that queues have on a server.
 *
 * A queue `mail` of the namespace `shop` is `shop_mail` on the server; what could not be done is parked in
 * `shop_mail_errors`. Kestrel itself forbids `.`, `/` and `~` by closing the connection, and makes a fanout queue of a
 * name with `+` (source: observed on Kestrel 2.4.1): only a narrow set of characters gets there. Pings for the workers
 * of a host are in `shop_mail_ping_<host>`.
 */
final class Names
{
    /** Longest name on a server, in bytes: it becomes a file's name there, which with its suffixes ends at 255. */
    public const MAX_BYTES = 200;

    /** As much of a host's name is in that of a ping queue; role kestrel gives limits to the same names. */
    private const HOST_CHARACTERS = 64;
    private const RESERVED = '/_(?:errors|retry_[0-9]+|ping_.*)\z/';

    /** Returns `$name` when a server may see it. @throws InvalidQueueName */
    public static function check(string $name, string $what = 'queue name'): string
    {
        if ($name === '') {
            throw new InvalidQueueName("The $what is empty.");
        }
        if (strspn($name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-') !== strlen($name)) {
            $shown = Text::quote($name, 40);
            throw new InvalidQueueName("The $what $shown may hold only A-Z, a-z, 0-9, '_' and '-'.");
        }
        if (strlen($name) > self::MAX_BYTES) {
            throw new InvalidQueueName(sprintf(
                'The %s %s has %d bytes; at most %d fit.',
                $what,
                Text::quote($name, 20),
                strlen($name),
                self::MAX_BYTES,
            ));
        }
        return $name;
    }

    /**
     * Returns the server's name of a namespace's queue.
     *
     * The name of its error queue must fit as well: a job that could not be parked could never be acknowledged.
     *
     * @throws InvalidQueueName
     */
    public static function make(string $namespace, string $queue): string
    {
        self::check($namespace, 'namespace');
        self::check($queue);
        if (preg_match(self::RESERVED, $queue)) {
            throw new InvalidQueueName(
                "The queue name '$queue' is like those that the stack makes itself: "
                . '_errors, _retry_<seconds>, _ping_<host>.',
            );
        }
        $name = "{$namespace}_$queue";
        self::errors($name);
        return $name;
    }

    /** Returns the queue where the failed jobs of the server's queue `$name` are parked. */
    public static function errors(string $name): string
    {
        return self::check("{$name}_errors");
    }

    /** Returns the queue where jobs of the server's queue `$name` wait for `$seconds` before another try. */
    public static function retry(string $name, int $seconds): string
    {
        if ($seconds < 1) {
            throw new InvalidQueueName("A retry delay is a whole number of seconds from 1 on, not $seconds.");
        }
        return self::check("{$name}_retry_$seconds");
    }

    /** Returns the queue where the workers of the server's queue `$name` on `$host` look for pings. */
    public static function ping(string $name, string $host): string
    {
        $host = preg_replace('/[^A-Za-z0-9_-]/u', '-', $host) ?? preg_replace('/[^A-Za-z0-9_-]/', '-', $host);
        $made = self::check("{$name}_ping_" . substr((string) $host, 0, self::HOST_CHARACTERS));
        self::pingAnswers($made);
        return $made;
    }

    /** Returns the queue where pings of `$pingQueue` are answered. */
    public static function pingAnswers(string $pingQueue): string
    {
        return self::check("{$pingQueue}_answer");
    }
}
