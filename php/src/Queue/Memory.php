<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * All items of all queues of one store in this process.
 *
 * @internal
 */
final class Memory
{
    /** @var array<string, self> */
    private static array $named = [];
    /** @var array<string, list<string>> */
    private array $items = [];
    /** @var array<string, int> */
    private array $reserved = [];
    /** @var array<string, list<array{float, int, string}>> by due time: that, the delay, the item */
    private array $delayed = [];
    private int $numbers = 0;

    /** Returns the memory of this name; the same name is the same memory. */
    public static function named(string $name): self
    {
        return self::$named[$name] ??= new self();
    }

    public function number(): int
    {
        return ++$this->numbers;
    }

    public function add(string $name, string $body): void
    {
        $this->items[$name][] = $body;
    }

    public function take(string $name): ?string
    {
        $this->nextDue($name);
        if (($this->items[$name] ?? []) === []) {
            return null;
        }
        $this->reserved[$name] = $this->reserved($name) + 1;
        return array_shift($this->items[$name]);
    }

    public function done(string $name): void
    {
        $this->reserved[$name]--;
    }

    public function giveBack(string $name, string $body): void
    {
        $this->reserved[$name]--;
        array_unshift($this->items[$name], $body);
    }

    /** Keeps `$body` back from the queue `$name`. */
    public function delay(string $name, string $body, int $seconds): void
    {
        $this->delayed[$name][] = [Clock::now() + $seconds, $seconds, $body];
        // Sorting is stable: what is due at the same time keeps its order.
        usort($this->delayed[$name], static fn (array $a, array $b): int => $a[0] <=> $b[0]);
    }

    /** Puts what is due on the queue, and returns in how many seconds the next item will be. */
    public function nextDue(string $name): float
    {
        while (isset($this->delayed[$name][0]) && $this->delayed[$name][0][0] <= Clock::now()) {
            $this->add($name, array_shift($this->delayed[$name])[2]);
        }
        return isset($this->delayed[$name][0]) ? $this->delayed[$name][0][0] - Clock::now() : INF;
    }

    public function ready(string $name): int
    {
        $this->nextDue($name);
        return count($this->items[$name] ?? []);
    }

    public function reserved(string $name): int
    {
        return $this->reserved[$name] ?? 0;
    }

    /** @return array<int, int> how many items of `$name` are kept back, by their delay */
    public function delayed(string $name): array
    {
        $this->nextDue($name);
        return array_count_values(array_column($this->delayed[$name] ?? [], 1));
    }

    public function peek(string $name): ?string
    {
        $this->nextDue($name);
        return $this->items[$name][0] ?? null;
    }
}
