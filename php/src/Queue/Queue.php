<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidJob;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\InvalidServer;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * The queues of one namespace, on some servers; it survives a fork.
 *
 * `$queues` describes them, as in the settings file or by their names. Without a description any name is taken, and no
 * delay.
 */
abstract class Queue
{
    /** Seconds after which `put` gives up, however many servers there are. */
    public const TIMEOUT = 5.0;

    public readonly string $namespace;
    /** @var array<QueueSettings> by name */
    public readonly array $queues;

    /** @param iterable<string|array<string, mixed>|QueueSettings> $queues */
    public function __construct(string $namespace, iterable $queues = [])
    {
        $this->namespace = Names::check($namespace, 'namespace');
        $described = [];
        foreach ($queues as $queue) {
            $queue = Settings::describeQueue($queue, $namespace);
            $described[$queue->name] = $queue;
        }
        $this->queues = $described;
    }

    /**
     * Returns the queues at `$url`; nothing is sent yet.
     *
     * `kestrel://host:port,host:port/namespace` (port 22133 if none is given), `beanstalkd://host:port/namespace` (port
     * 11300), or `memory://name/namespace`, which lives in this process: the same name is the same store.
     *
     * @param iterable<string|array<string, mixed>|QueueSettings> $queues
     * @throws InvalidServer|InvalidQueueName
     */
    public static function open(string $url, iterable $queues = []): self
    {
        if (!preg_match('~\A([^:/]*)://([^/]+)/(.*)\z~s', $url, $match)) {
            throw new InvalidServer(
                Text::quote($url) . ' is not the address of a queue; write kestrel://host:port,host:port/namespace.',
            );
        }
        [, $scheme, $where, $namespace] = $match;
        return match ($scheme) {
            'kestrel' => new KestrelStore($namespace, $where, $queues),
            'beanstalkd' => new BeanstalkdStore($namespace, $where, $queues),
            'memory' => new MemoryStore($namespace, $where, $queues),
            default => throw new InvalidServer(
                Text::quote($url) . ' begins with an unknown scheme; known: kestrel://, beanstalkd://, memory://.',
            ),
        };
    }

    /** Returns the description of `$queue`. @throws InvalidQueueName when it is not one of those known */
    public function described(string $queue): QueueSettings
    {
        if (isset($this->queues[$queue])) {
            return $this->queues[$queue];
        }
        if ($this->queues !== []) {
            throw new InvalidQueueName(
                'The queue ' . Text::quote($queue) . ' is not configured; configured: ' . $this->known() . '.',
            );
        }
        return Settings::describeQueue($queue, $this->namespace);
    }

    /**
     * Puts `$body` on `$queue`, or has it come after `$delay` seconds, one of the queue's retry delays.
     *
     * @throws InvalidQueueName|InvalidJob before anything is sent
     * @throws QueueFull when every server refused the item
     * @throws ServerUnavailable when none took it within `$timeout` seconds; it is not known then whether it was stored
     */
    public function put(string $queue, string $body, ?int $delay = null, float $timeout = self::TIMEOUT): void
    {
        $described = $this->described($queue);
        if ($delay !== null) {
            self::checkDelay($described, $delay);
        }
        $name = $this->name($queue);
        $this->write($described, $delay === null ? $name : Names::retry($name, $delay), $body, $timeout, $delay);
    }

    /** Puts `$record` on the error queue of `$queue`. Throws as `put` does. */
    public function park(string $queue, string $record, float $timeout = self::TIMEOUT): void
    {
        $this->write($this->described($queue), Names::errors($this->name($queue)), $record, $timeout);
    }

    /** Returns the server's name of `$queue`. @throws InvalidQueueName as `described` does */
    public function name(string $queue): string
    {
        return Names::make($this->namespace, $this->described($queue)->name);
    }

    /** Returns the names of the queues that are described, for a sentence. */
    public function known(): string
    {
        $names = array_map(strval(...), array_keys($this->queues));
        sort($names, SORT_STRING);
        return $names === [] ? 'none' : implode(', ', $names);
    }

    /** Returns `$queue` as a worker uses it; its visits begin at server number `$start` mod their count. */
    abstract public function worker(string $queue, int $start = 0): JobQueue;

    /**
     * Returns the error queue of `$queue`, to take parked records from it. Its `park` writes to the end of the same
     * error queue, on the server of the item.
     */
    abstract public function parked(string $queue): JobQueue;

    /** Returns how many items `$queue` has. @throws ServerUnavailable when a server does not answer */
    abstract public function count(string $queue): Counts;

    /** Returns an item that is next, and leaves it where it is; null when there is none. */
    abstract public function peek(string $queue): ?string;

    /** Closes the connections; the next call opens them again. */
    public function close(): void
    {
    }

    /** @throws InvalidJob unless `$delay` is one of the queue's retry delays */
    public static function checkDelay(QueueSettings $queue, int $delay): void
    {
        if (!in_array($delay, $queue->retryDelays, true)) {
            $allowed = implode(', ', $queue->retryDelays) ?: 'none';
            throw new InvalidJob(
                "The delay $delay is not one of the retry_delays of the queue $queue->name, in seconds: $allowed.",
            );
        }
    }

    /** Puts `$body` on the server's queue `$name`, which belongs to `$queue`; everything was checked. */
    abstract protected function write(
        QueueSettings $queue,
        string $name,
        string $body,
        float $timeout,
        ?int $delay = null,
    ): void;
}
