<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Has another process send events to Sentry: nobody waits for Sentry, or for its name to be looked up.
 *
 * Only so many events wait; further ones are dropped, so that a dead Sentry costs no memory.
 */
final class Reporter
{
    public const MAX_WAITING = 100;

    /** Seconds until a process that ended is started again. */
    private const START_AGAIN = 60.0;
    private const CHUNK = 64 * 1024;

    /** @var ?resource of proc_open */
    private $process = null;
    private ?int $pid = null;
    /** @var ?resource */
    private $socket = null;
    private Frames $frames;
    private string $buffer = '';
    private int $waiting = 0;
    private int $dropped = 0;
    private bool $away = false;
    private float $notBefore = 0.0;

    /**
     * @param array<string, ?string> $about what goes into every event: release, environment, server_name
     */
    public function __construct(
        #[\SensitiveParameter]
        private readonly string $dsn,
        private readonly Log $log,
        private readonly array $about,
    ) {
        $this->frames = new Frames();
    }

    /** The release that every event is of. */
    public function release(): ?string
    {
        return $this->about['release'] ?? null;
    }

    /** How many events wait to be sent. */
    public function waiting(): int
    {
        return $this->waiting;
    }

    /** Start the process, unless it runs or has ended a moment ago. */
    private function start(): void
    {
        if ($this->socket !== null || hrtime(true) / 1e9 < $this->notBefore) {
            return;
        }
        $this->notBefore = hrtime(true) / 1e9 + self::START_AGAIN;
        $this->reap();
        $command = Program::of(2, [PHP_BINARY, dirname(__DIR__, 2) . '/bin/consumer-sentry']);
        $process = @proc_open($command, [['socket'], ['file', '/dev/null', 'w'], ['file', '/dev/null', 'w']], $pipes);
        if ($process === false) {
            $this->log->warning('errors are not reported', ['error' => 'the process for it could not be started']);
            return;
        }
        $this->process = $process;
        $this->pid = proc_get_status($process)['pid'];
        $this->socket = $pipes[0];
        stream_set_blocking($this->socket, false);
        $this->frames = new Frames();
        $this->buffer = Frames::encode(['dsn' => $this->dsn]);
        $this->waiting = 0;
    }

    /**
     * Have an event sent some time; return its id.
     *
     * @param array<string, mixed> $event
     */
    public function report(array $event): string
    {
        $this->pass(Sentry::envelope(array_filter($this->about, static fn (?string $text): bool => ($text ?? '') !== '')
            + $event));
        return (string) $event['event_id'];
    }

    /** Have an envelope sent some time. */
    public function pass(string $envelope): void
    {
        $this->start();
        $this->tend();
        if ($this->socket === null || $this->waiting >= self::MAX_WAITING) {
            $this->dropped++;
            return;
        }
        $this->waiting++;
        $this->buffer .= Frames::encode([], $envelope);
        $this->tend();
    }

    /** Go on with what waits, without waiting. */
    public function tend(): void
    {
        if ($this->socket === null || ($this->waiting === 0 && $this->buffer === '')) {
            return;
        }
        if ($this->buffer !== '') {
            $written = @fwrite($this->socket, $this->buffer);
            $this->buffer = $written === false ? $this->buffer : substr($this->buffer, $written);
        }
        while (($data = @fread($this->socket, self::CHUNK)) !== false && $data !== '') {
            foreach ($this->frames->feed($data) as [$answer]) {
                $this->waiting--;
                $this->note($answer['error'] ?? null);
            }
        }
        if (feof($this->socket)) {
            $this->log->warning('errors are not reported', ['error' => 'the process for it has ended']);
            $this->dropped += $this->waiting;
            $this->closeSocket();
        }
    }

    /** Give the events that wait so many seconds to be sent. */
    public function close(float $seconds = Sentry::TIMEOUT): void
    {
        $deadline = hrtime(true) / 1e9 + $seconds;
        while ($this->socket !== null && $this->waiting > 0 && ($left = $deadline - hrtime(true) / 1e9) > 0) {
            $read = [$this->socket];
            $write = $this->buffer === '' ? null : [$this->socket];
            $none = null;
            @stream_select($read, $write, $none, 0, (int) ($left * 1e6) + 1);
            $this->tend();
        }
        $lost = $this->waiting + $this->dropped;
        if ($lost > 0) {
            $this->log->warning('errors were not reported', ['count' => $lost]);
        }
        $this->closeSocket();
        $this->reap();
    }

    private function note(?string $error): void
    {
        if ($error !== null) {
            $this->dropped++;
            $this->log->log($this->away ? 'debug' : 'warning', 'sentry is away', ['error' => $error]);
            $this->away = true;
            return;
        }
        if ($this->away) {
            $this->log->info('sentry is back', ['not_reported' => $this->dropped]);
        }
        $this->away = false;
        $this->dropped = 0;
    }

    private function closeSocket(): void
    {
        if ($this->socket !== null) {
            fclose($this->socket);
        }
        $this->socket = null;
        $this->buffer = '';
        $this->waiting = 0;
    }

    private function reap(): void
    {
        if ($this->pid !== null) {
            posix_kill($this->pid, SIGKILL);
            pcntl_waitpid($this->pid, $status);
            $this->process = null;
            $this->pid = null;
        }
    }
}
