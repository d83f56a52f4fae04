<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\QueueFull;

/** The queues of a namespace in the memory of this process called `$name`: for an application's tests. */
final class MemoryStore extends Queue
{
    private readonly Memory $memory;
    private readonly Server $server;

    /** @param iterable<string|array<string, mixed>|QueueSettings> $queues */
    public function __construct(string $namespace, string $name, iterable $queues = [])
    {
        parent::__construct($namespace, $queues);
        $this->memory = Memory::named($name);
        $this->server = new Server($name, 0);
    }

    public function worker(string $queue, int $start = 0): MemoryQueue
    {
        $name = $this->name($queue);
        return new MemoryQueue($name, $this->memory, $this->server, Names::errors($name));
    }

    public function parked(string $queue): MemoryQueue
    {
        $name = Names::errors($this->name($queue));
        return new MemoryQueue($name, $this->memory, $this->server, $name);
    }

    public function count(string $queue): Counts
    {
        $name = $this->name($queue);
        $errors = Names::errors($name);
        $delayed = $this->memory->delayed($name) + array_fill_keys($this->described($queue)->retryDelays, 0);
        ksort($delayed);
        return new Counts(
            $this->memory->ready($name),
            $this->memory->reserved($name),
            $delayed,
            $this->memory->ready($errors) + $this->memory->reserved($errors),
        );
    }

    public function peek(string $queue): ?string
    {
        return $this->memory->peek($this->name($queue));
    }

    protected function write(
        QueueSettings $queue,
        string $name,
        string $body,
        float $timeout,
        ?int $delay = null,
    ): void {
        $own = $this->name($queue->name);
        if ($delay !== null) {
            $this->memory->delay($own, $body, $delay);
            return;
        }
        if ($name === $own && $queue->maxItems !== null && $this->memory->ready($name) >= $queue->maxItems) {
            throw new QueueFull("Not enqueued: $name has $queue->maxItems items already.");
        }
        $this->memory->add($name, $body);
    }
}
