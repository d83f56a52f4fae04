<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidServer;
use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * The queues of a namespace on one beanstalkd server, `host` or `host:port`.
 *
 * A queue is the tube of its name. Delayed items lie in tubes of their own, `<name>_retry_<seconds>`, with beanstalkd's
 * own delay, and workers watch those tubes as well. An item that a worker holds for longer than twice the queue's
 * job_timeout and a minute is delivered again.
 */
final class BeanstalkdStore extends Queue
{
    private readonly Server $server;
    private readonly BeanstalkdClient $client;

    /** @param iterable<string|array<string, mixed>|QueueSettings> $queues */
    public function __construct(string $namespace, string|Server $server, iterable $queues = [])
    {
        parent::__construct($namespace, $queues);
        $servers = Server::parse(is_string($server) ? $server : [$server], BeanstalkdClient::DEFAULT_PORT);
        if (count($servers) > 1) {
            throw new InvalidServer('Only one beanstalkd server can be used; write beanstalkd://host:port/namespace.');
        }
        $this->server = $servers[0];
        $this->client = new BeanstalkdClient($this->server);
    }

    public function worker(string $queue, int $start = 0): BeanstalkdQueue
    {
        $described = $this->described($queue);
        $name = $this->name($queue);
        $ttr = self::ttr($described);
        return new BeanstalkdQueue($name, $this->server, $ttr, Names::errors($name), $described->retryDelays);
    }

    public function parked(string $queue): BeanstalkdQueue
    {
        $name = Names::errors($this->name($queue));
        return new BeanstalkdQueue($name, $this->server, self::ttr($this->described($queue)), $name);
    }

    /** Adds up the numbers of the queue's tubes. */
    public function count(string $queue): Counts
    {
        $name = $this->name($queue);
        $delays = $this->described($queue)->retryDelays;
        sort($delays);
        $tubes = [$this->client->stats($name)];
        $delayed = [];
        foreach ($delays as $delay) {
            $tube = $this->client->stats(Names::retry($name, $delay));
            $delayed[$delay] = $tube['current-jobs-delayed'] ?? 0;
            $tubes[] = $tube;
        }
        $errors = $this->client->stats(Names::errors($name));
        return new Counts(
            array_sum(array_column($tubes, 'current-jobs-ready')),
            array_sum(array_column($tubes, 'current-jobs-reserved')),
            $delayed,
            ($errors['current-jobs-ready'] ?? 0) + ($errors['current-jobs-reserved'] ?? 0),
        );
    }

    /** Returns the head of the queue's own tube. */
    public function peek(string $queue): ?string
    {
        return $this->client->peek($this->name($queue));
    }

    public function close(): void
    {
        $this->client->drop();
    }

    protected function write(
        QueueSettings $queue,
        string $name,
        string $body,
        float $timeout,
        ?int $delay = null,
    ): void {
        try {
            // Connecting, using the tube, and putting: each has its part of the time.
            $this->client->put($name, $body, $delay ?? 0, self::ttr($queue), $timeout / 3);
        } catch (QueueFull $error) {
            throw new QueueFull('Not enqueued: ' . $error->getMessage());
        } catch (ServerUnavailable | ProtocolError $error) {
            throw new ServerUnavailable('Not enqueued: ' . $error->getMessage());
        }
    }

    /** Returns the seconds that a worker may hold an item of `$queue`. */
    private static function ttr(QueueSettings $queue): int
    {
        return 2 * $queue->jobTimeout + 60;
    }
}
