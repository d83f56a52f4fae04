<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * What the queues need of beanstalkd's protocol (its protocol.txt, version 1.12): one connection, made at the first
 * command and again after an error.
 *
 * @internal
 */
final class BeanstalkdClient
{
    public const DEFAULT_PORT = 11300;
    /** Every item's; beanstalkd then keeps them in order. */
    private const PRIORITY = 65536;

    private readonly Connection $wire;
    private ?string $used = null;

    /** @param list<string> $watch the tubes to reserve from */
    public function __construct(private readonly Server $server, private readonly array $watch = [])
    {
        $this->wire = new Connection($server);
    }

    /** @throws QueueFull when the item is larger than the server allows */
    public function put(string $tube, string $body, int $delay, int $ttr, float $timeout): void
    {
        $this->use($tube, $timeout);
        $head = sprintf('put %d %d %d %d', self::PRIORITY, $delay, $ttr, strlen($body));
        $line = $this->ask("$head\r\n$body", $timeout);
        if ($line === 'JOB_TOO_BIG') {
            $this->drop();
            throw new QueueFull("$this->server refused the item: it is larger than the server allows.");
        }
        if (!str_starts_with($line, 'INSERTED ')) {
            $this->refused($line);
        }
    }

    /** @return ?array{int, string} the item's number and bytes */
    public function reserve(int $wait): ?array
    {
        $line = $this->ask("reserve-with-timeout $wait", $wait + Client::READ_TIMEOUT);
        if ($line === 'TIMED_OUT' || $line === 'DEADLINE_SOON') {
            return null;
        }
        return $this->item($line, 'RESERVED');
    }

    /** Removes an item; says whether it was there and ours. */
    public function delete(int $number): bool
    {
        $line = $this->ask("delete $number");
        if ($line !== 'DELETED' && $line !== 'NOT_FOUND') {
            $this->refused($line);
        }
        return $line === 'DELETED';
    }

    public function peek(string $tube): ?string
    {
        $this->use($tube, Client::READ_TIMEOUT);
        $line = $this->ask('peek-ready');
        return $line === 'NOT_FOUND' ? null : $this->item($line, 'FOUND')[1];
    }

    /** @return array<string, int> the numbers of a tube, none when it does not exist */
    public function stats(string $tube): array
    {
        $line = $this->ask("stats-tube $tube");
        if ($line === 'NOT_FOUND') {
            return [];
        }
        $parts = explode(' ', $line);
        if ($parts[0] !== 'OK' || count($parts) !== 2) {
            $this->refused($line);
        }
        preg_match_all('/^([a-z-]+): ([0-9]+)$/m', $this->wire->data($parts[1], $line), $found);
        return array_map(intval(...), array_combine($found[1], $found[2]));
    }

    public function connected(): bool
    {
        return $this->wire->isOpen();
    }

    /** @return ?resource */
    public function stream()
    {
        return $this->wire->stream();
    }

    public function drop(): void
    {
        $this->wire->close();
    }

    private function use(string $tube, float $timeout): void
    {
        if (!$this->wire->isOpen() || $this->used !== $tube) {
            $line = $this->ask("use $tube", $timeout);
            if ($line !== "USING $tube") {
                $this->refused($line);
            }
            $this->used = $tube;
        }
    }

    private function ask(string $command, float $timeout = Client::READ_TIMEOUT): string
    {
        if (!$this->wire->isOpen()) {
            $this->used = null;
            $this->wire->open(min($timeout, Client::CONNECT_TIMEOUT));
            foreach ($this->watch as $tube) {
                $this->expect("watch $tube", 'WATCHING ');
            }
            if ($this->watch !== []) {
                $this->expect('ignore default', 'WATCHING ');
            }
        }
        $this->wire->send("$command\r\n", $timeout);
        return $this->wire->line();
    }

    private function expect(string $command, string $answer): void
    {
        $this->wire->send("$command\r\n", Client::READ_TIMEOUT);
        $line = $this->wire->line();
        if (!str_starts_with($line, $answer)) {
            $this->refused($line);
        }
    }

    /** @return array{int, string} */
    private function item(string $line, string $word): array
    {
        $parts = explode(' ', $line);
        if ($parts[0] !== $word || count($parts) !== 3 || !ctype_digit($parts[1])) {
            $this->refused($line);
        }
        return [(int) $parts[1], $this->wire->data($parts[2], $line)];
    }

    private function refused(string $line): never
    {
        if (preg_match('/\A(?:DRAINING|OUT_OF_MEMORY|BURIED)\b/', $line)) {
            $this->drop();
            throw new ServerUnavailable("$this->server refused: " . Text::quote($line) . '.');
        }
        $this->wire->unexpected($line);
    }
}
