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
    /** Seconds after which a Sentry that is still away is told again. */
    private const STILL_AWAY = 300.0;
    private const CHUNK = 64 * 1024;

    /** @var ?resource of proc_open */
    private $process = null;
    private ?int $pid = null;
    /** @var ?resource */
    private $socket = null;
    private Frames $frames;
    private string $buffer = '';
    private int $waiting = 0;
    /** @var list<?array{string, string}> of each event that waits: the error and the event's id, where it has those */
    private array $of = [];
    /** @var array{reported: int, repeated: int, not_reported: int} */
    private array $counts = ['reported' => 0, 'repeated' => 0, 'not_reported' => 0];
    private ?float $awaySince = null;
    private float $told = 0.0;
    /** How many were not reported when Sentry went away. */
    private int $before = 0;
    private float $notBefore = 0.0;

    /**
     * @param array<string, ?string> $about what goes into every event: release, environment, server_name
     */
    public function __construct(
        #[\SensitiveParameter]
        private readonly string $dsn,
        private readonly Log $log,
        private readonly array $about,
        private readonly Repeats $repeats = new Repeats(),
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

    /**
     * How many events were reported, repeated (held back, see Repeats) and not reported so far; those that wait are in
     * none.
     *
     * @return array{reported: int, repeated: int, not_reported: int}
     */
    public function counts(): array
    {
        return $this->counts;
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
        $this->of = [];
    }

    /**
     * Have an event sent some time; return its id, or that of the last one which says the same.
     *
     * Null when it is dropped, so that nobody looks for it in vain.
     *
     * @param array<string, mixed> $event
     */
    public function report(array $event): ?string
    {
        $values = $event['exception']['values'];
        $last = $values[array_key_last($values)];
        $key = Repeats::key($last['type'], $last['value'], (string) $event['level'], $event['transaction'] ?? null);
        $repeated = $this->repeats->count($key);
        if ($repeated === null) {
            $this->counts['repeated']++;
            return $this->repeats->last($key);
        }
        if (!$this->takes()) {  // to make the envelope would be in vain
            $this->counts['not_reported']++;
            $this->repeats->hold($key, $repeated);
            return null;
        }
        if ($repeated > 0) {
            $event['extra'] = (array) ($event['extra'] ?? []) + [Sentry::REPEATED => $repeated];
        }
        $about = array_filter($this->about, static fn (?string $text): bool => ($text ?? '') !== '');
        $id = (string) $event['event_id'];
        $this->repeats->sent($key, $id);
        $this->pass(Sentry::envelope($about + $event), [$key, $id]);
        return $this->repeats->last($key);
    }

    private function takes(): bool
    {
        $this->start();
        $this->tend();
        return $this->socket !== null && $this->waiting < self::MAX_WAITING;
    }

    /**
     * Have an envelope sent some time; say whether it is not dropped because too many wait.
     *
     * @param ?array{string, string} $of the error, and the event's id, that is not to be named again when it could not
     *     be sent
     */
    public function pass(string $envelope, ?array $of = null): bool
    {
        if (!$this->takes()) {
            $this->counts['not_reported']++;
            $this->forget($of);
            return false;
        }
        $this->waiting++;
        $this->of[] = $of;
        $this->buffer .= Frames::encode([], $envelope);
        $this->tend();
        return true;
    }

    /** Count an error that its child held back, since the same was sent; return the id of the last one that was. */
    public function noteRepeated(string $key): ?string
    {
        $this->repeats->hold($key);
        $this->counts['repeated']++;
        return $this->repeats->last($key);
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
                $of = array_shift($this->of);
                if (($answer['error'] ?? null) !== null) {
                    $this->forget($of);
                }
                $this->note($answer['error'] ?? null);
            }
        }
        if (feof($this->socket)) {
            $this->log->warning('errors are not reported', ['error' => 'the process for it has ended']);
            $this->counts['not_reported'] += $this->waiting;
            $this->closeSocket();
        }
    }

    /** Give the events that wait so many seconds to be sent, and say what became of all. */
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
        $counts = $this->counts;
        $counts['not_reported'] += $this->waiting;
        if ($counts['not_reported'] > 0) {
            $this->log->warning('errors were not reported', ['count' => $counts['not_reported']]);
        }
        if (array_sum($counts) > 0) {
            $this->log->info('errors', $counts);
        }
        $this->closeSocket();
        $this->reap();
    }

    private function note(?string $error): void
    {
        if ($error !== null) {
            $this->noteAway($error);
            $this->counts['not_reported']++;
            return;
        }
        $this->counts['reported']++;
        if ($this->awaySince !== null) {
            $this->log->info('sentry is back', [
                'not_reported' => $this->counts['not_reported'] - $this->before,
                'away' => round(hrtime(true) / 1e9 - $this->awaySince) . 's',
            ]);
        }
        $this->awaySince = null;
    }

    private function noteAway(string $error): void
    {
        $now = hrtime(true) / 1e9;
        if ($this->awaySince === null) {
            $this->awaySince = $this->told = $now;
            $this->before = $this->counts['not_reported'];
            $this->log->warning('sentry is away', ['error' => $error]);
        } elseif ($now - $this->told >= self::STILL_AWAY) {
            $this->told = $now;
            $missed = $this->counts['not_reported'] + 1 - $this->before;
            $this->log->warning('sentry is still away', ['error' => $error, 'not_reported' => $missed]);
        } else {
            $this->log->debug('sentry is still away', ['error' => $error]);
        }
    }

    /** @param ?array{string, string} $of see pass() */
    private function forget(?array $of): void
    {
        if ($of !== null) {
            $this->repeats->lost(...$of);
        }
    }

    private function closeSocket(): void
    {
        array_map($this->forget(...), $this->of);
        $this->of = [];
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
