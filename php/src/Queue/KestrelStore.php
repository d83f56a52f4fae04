<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;

/** The queues of a namespace on Kestrel servers, written as `host:port,host:port` or a list. */
final class KestrelStore extends Queue
{
    /** @var non-empty-list<Server> */
    public readonly array $servers;
    private readonly \Closure $connect;
    /** @var array<string, Client> */
    private array $clients = [];
    /** @var array<string, Backoff> of servers that failed */
    private array $backoffs = [];
    /** @var array<string, float> until when a server that failed is tried only after the others */
    private array $lastResort = [];

    /**
     * @param string|iterable<string|Server> $servers
     * @param iterable<string|array<string, mixed>|QueueSettings> $queues
     * @param ?\Closure(Server): Client $connect makes a client; by default a StreamClient
     */
    public function __construct(
        string $namespace,
        string|iterable $servers,
        iterable $queues = [],
        ?\Closure $connect = null,
    ) {
        parent::__construct($namespace, $queues);
        $this->servers = Server::parse($servers);
        $this->connect = $connect ?? static fn (Server $server): Client => new StreamClient($server);
    }

    public function worker(string $queue, int $start = 0): KestrelQueue
    {
        return new KestrelQueue($this->name($queue), $this->servers, $start, connect: $this->connect);
    }

    public function parked(string $queue): KestrelQueue
    {
        $name = Names::errors($this->name($queue));
        return new KestrelQueue($name, $this->servers, connect: $this->connect, errors: $name);
    }

    /** Adds up the numbers of all servers. What a mover holds until it is due counts as delayed. */
    public function count(string $queue): Counts
    {
        $name = $this->name($queue);
        $delays = $this->described($queue)->retryDelays;
        $delayed = array_fill_keys($delays, 0);
        $ready = $reserved = $parked = 0;
        $pattern = '/\Aqueue_' . preg_quote($name, '/') . '_retry_([1-9][0-9]{0,9})_(?:items|open_transactions)\z/';
        foreach ($this->servers as $server) {
            $stats = $this->stats($server);
            $ready += self::number($stats, $name, 'items');
            $reserved += self::number($stats, $name, 'open_transactions');
            $errors = Names::errors($name);
            $parked += self::number($stats, $errors, 'items') + self::number($stats, $errors, 'open_transactions');
            foreach ($stats as $key => $value) {
                if (preg_match($pattern, (string) $key, $match)) {
                    // Also those that are no longer configured: their items have not gone away.
                    $delayed[(int) $match[1]] = ($delayed[(int) $match[1]] ?? 0) + (int) $value;
                }
            }
        }
        ksort($delayed);
        return new Counts($ready, $reserved, $delayed, $parked);
    }

    /** Returns the head of the queue on the first server that has one. */
    public function peek(string $queue): ?string
    {
        $name = $this->name($queue);
        foreach ($this->servers as $server) {
            // Kestrel would make the queue if it were asked for an item of one that does not exist.
            if (self::number($this->stats($server), $name, 'items') > 0) {
                $client = $this->client($server, Client::CONNECT_TIMEOUT, Client::READ_TIMEOUT);
                $body = $client->get($name, peek: true);
                if ($body !== null) {
                    return $body;
                }
            }
        }
        return null;
    }

    public function close(): void
    {
        foreach ($this->clients as $client) {
            $client->disconnect();
        }
        $this->clients = [];
    }

    protected function write(
        QueueSettings $queue,
        string $name,
        string $body,
        float $timeout,
        ?int $delay = null,
    ): void {
        // Each server is tried once, in random order, so that producers spread over the servers. One that has just
        // failed comes last: frozen, it would hold up every second job for its share of the time limit.
        $servers = $this->servers;
        shuffle($servers);
        $now = Clock::now();
        $last = fn (Server $server): bool => ($this->lastResort[(string) $server] ?? $now) > $now;
        usort($servers, static fn (Server $one, Server $other): int => $last($one) <=> $last($other));
        $deadline = $now + $timeout;
        $failures = [];
        $full = true;
        foreach ($servers as $number => $server) {
            $left = $deadline - Clock::now();
            if ($left <= 0) {
                $failures[] = "$server was not tried: no time was left.";
                $full = false;
                continue;
            }
            // The time left is shared, so that one silent server does not use up what the others need.
            $seconds = $left / (count($servers) - $number);
            try {
                $this->client($server, $seconds / 2, $seconds / 2)->set($name, $body);
                unset($this->backoffs[(string) $server]);
                return;
            } catch (QueueFull | ServerUnavailable | ProtocolError $error) {
                $failures[] = $error->getMessage();
                $full = $full && $error instanceof QueueFull;
                if (!$error instanceof QueueFull) {
                    $backoff = $this->backoffs[(string) $server] ??= new Backoff();
                    $this->lastResort[(string) $server] = Clock::now() + $backoff->next();
                }
            }
        }
        $said = 'Not enqueued: ' . implode(' ', $failures);
        throw $full ? new QueueFull($said) : new ServerUnavailable($said);
    }

    private function client(Server $server, float $connect, float $read): Client
    {
        $client = $this->clients[(string) $server] ??= ($this->connect)($server);
        $client->limit($connect, $read);
        return $client;
    }

    /** @return array<string, string> */
    private function stats(Server $server): array
    {
        return $this->client($server, Client::CONNECT_TIMEOUT, Client::READ_TIMEOUT)->stats();
    }

    /** @param array<string, string> $stats */
    private static function number(array $stats, string $name, string $key): int
    {
        return (int) ($stats["queue_{$name}_$key"] ?? 0);
    }
}
