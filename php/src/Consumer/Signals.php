<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** TERM and INT: stop after the job in hand. HUP: replace the child after it. USR1: reopen logs. */
final class Signals
{
    /** The signal that told the worker to stop. */
    public ?string $stop = null;
    public bool $replace = false;
    public bool $reopen = false;
    /** Whether a child may have ended since this was last set to false. */
    public bool $child = false;

    private bool $came = false;

    /** Take over the process's signals. */
    public function install(): void
    {
        pcntl_async_signals(true);
        $stop = function (int $number): void {
            $this->stop = $number === SIGTERM ? 'SIGTERM' : 'SIGINT';
            $this->came = true;
        };
        // Without "restart" a signal ends the wait in stream_select.
        pcntl_signal(SIGTERM, $stop, false);
        pcntl_signal(SIGINT, $stop, false);
        pcntl_signal(SIGHUP, function (): void {
            $this->replace = true;
            $this->came = true;
        }, false);
        pcntl_signal(SIGUSR1, function (): void {
            $this->reopen = true;
            $this->came = true;
        }, false);
        pcntl_signal(SIGCHLD, function (): void {
            $this->child = true;
            $this->came = true;
        }, false);
    }

    /** Say whether a signal came since this was last asked. */
    public function came(): bool
    {
        $came = $this->came;
        $this->came = false;
        return $came;
    }

    /** Say whether `came` would be true. */
    public function waiting(): bool
    {
        return $this->came;
    }
}
