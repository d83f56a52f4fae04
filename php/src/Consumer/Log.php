<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Writes events with fields; `bind` returns a log that adds fields to each of them.
 *
 * The methods have the shape of PSR-3's. A sink is called with the level, the event and the fields.
 */
final class Log
{
    public const LEVELS = ['debug', 'info', 'warning', 'error'];

    /**
     * @param \Closure(string, string, array<string, mixed>): void $sink
     * @param array<string, mixed> $fields
     */
    public function __construct(private readonly \Closure $sink, private readonly array $fields = [])
    {
    }

    /**
     * Return a log whose every line carries $fields.
     *
     * @param array<string, mixed> $fields
     */
    public function bind(array $fields): self
    {
        return new self($this->sink, $fields + $this->fields);
    }

    /**
     * Log what only someone looking for a fault wants to know.
     *
     * @param array<string, mixed> $fields
     */
    public function debug(string $event, array $fields = []): void
    {
        ($this->sink)('debug', $event, $this->fields + $fields);
    }

    /**
     * Log what happened as it should.
     *
     * @param array<string, mixed> $fields
     */
    public function info(string $event, array $fields = []): void
    {
        ($this->sink)('info', $event, $this->fields + $fields);
    }

    /**
     * Log what someone should look at one day.
     *
     * @param array<string, mixed> $fields
     */
    public function warning(string $event, array $fields = []): void
    {
        ($this->sink)('warning', $event, $this->fields + $fields);
    }

    /**
     * Log what someone should look at now.
     *
     * @param array<string, mixed> $fields
     */
    public function error(string $event, array $fields = []): void
    {
        ($this->sink)('error', $event, $this->fields + $fields);
    }

    /**
     * Log at a level that is known by its name only when it is logged.
     *
     * @param array<string, mixed> $fields
     */
    public function log(string $level, string $event, array $fields = []): void
    {
        ($this->sink)($level, $event, $this->fields + $fields);
    }
}
