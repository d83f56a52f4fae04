<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * The parent's hold on its child: start it, give it a job, see how that ends, stop or kill it.
 *
 * One child at a time.
 */
final class Runner
{
    /** Seconds for loading the application. */
    public const START_TIMEOUT = 60.0;
    /** Seconds that an idle child gets to end by itself; an application's shutdown functions run in them. */
    public const STOP_GRACE = 2.0;
    /** Seconds that a child gets to print where it hangs, before it is killed. */
    public const ABORT_GRACE = 1.0;

    /** Seconds after which a wait looks around by itself: a signal may come just before a wait begins. */
    private const LOOK_AROUND = 1.0;
    private const CHUNK = 256 * 1024;
    private const AT_ONCE = 32;

    /** What the job in hand, or the last one, logged below info. */
    public readonly KeptBack $kept;

    private readonly Output $output;
    /** @var ?resource of proc_open */
    private $process = null;
    private ?int $pid = null;
    /** How the child ended, once it has been waited for. */
    private ?string $ending = null;
    /** @var ?resource */
    private $socket = null;
    private Frames $frames;
    /** @var list<array<string, mixed>> */
    private array $inbox = [];
    private ?string $broken = null;
    private int $number = 0;
    /** @var list<string> */
    private array $jobs = [];

    /**
     * @param array<string, string> $environ
     */
    public function __construct(
        private readonly string $app,
        private readonly Log $log,
        private readonly Signals $signals,
        private readonly array $environ,
        private readonly float $startTimeout = self::START_TIMEOUT,
        private readonly ?Reporter $reporter = null,
    ) {
        $this->output = new Output($log);
        $this->frames = new Frames();
        $this->kept = new KeptBack();
    }

    /** The child's process id. */
    public function pid(): ?int
    {
        return $this->pid;
    }

    /**
     * The names of the jobs that the child knows.
     *
     * @return list<string>
     */
    public function jobs(): array
    {
        return $this->jobs;
    }

    /**
     * Start a child and wait until it has loaded the application.
     *
     * @throws UnusableApp
     * @throws ChildFailed when it died, took longer than its time, or the worker was told to stop meanwhile
     */
    public function start(): void
    {
        $command = Program::of(Child::DESCRIPTOR, [
            PHP_BINARY,
            // What PHP says of errors goes to the output of the job that they belong to, and no argument of a
            // call, which may be a secret, into a stack.
            ...['-d', 'display_errors=stderr', '-d', 'html_errors=0', '-d', 'zend.exception_ignore_args=1'],
            ...(ini_get('error_log') ? [] : ['-d', 'log_errors=0']),
            dirname(__DIR__, 2) . '/bin/consumer-child',
            (string) getmypid(),
            $this->app,
        ]);
        $descriptors = [
            ['file', '/dev/null', 'r'],
            $this->output->stdout(),
            $this->output->stderr(),
            Child::DESCRIPTOR => ['socket'],
        ];
        $this->frames = new Frames();
        $this->inbox = [];
        $this->broken = null;
        $this->ending = null;
        $process = @proc_open($command, $descriptors, $pipes, null, $this->environ);
        if ($process === false) {
            throw new ChildFailed('it could not be started: ' . (error_get_last()['message'] ?? 'unknown'));
        }
        $this->process = $process;
        $this->pid = proc_get_status($process)['pid'];
        $this->signals->child = true;
        $this->socket = $pipes[Child::DESCRIPTOR];
        stream_set_blocking($this->socket, false);
        stream_set_chunk_size($this->socket, self::CHUNK);
        $message = $this->await(self::now() + $this->startTimeout, untilTold: true);
        if (($message['type'] ?? null) === 'ready') {
            $this->jobs = array_map(strval(...), (array) ($message['jobs'] ?? []));
            return;
        }
        if ($message !== null) {
            $this->kill();
            throw new UnusableApp((string) ($message['message'] ?? 'unknown'), (string) ($message['stack'] ?? ''));
        }
        $late = sprintf('it was not ready after %s s', self::seconds($this->startTimeout));
        $ended = $this->ended();
        $broken = $this->broken;
        $this->kill();
        throw new ChildFailed(($ended ? $this->ending : null) ?? $broken ?? $this->signals->stop ?? $late);
    }

    /** Say whether there is a child that can take a job; log what it printed meanwhile. */
    public function alive(): bool
    {
        $this->output->drain();
        return $this->pid !== null && !$this->ended();
    }

    /**
     * Have the child do the job in $body, an item of $queue; after $timeout seconds it is killed.
     *
     * $watch returns a stream to look at as well, and $onEvent is called when something came of it. With $memory the
     * outcome tells the child's size; $level is Sentry's, for a failure that is to be reported, and $tries how many
     * attempts the queue grants.
     *
     * @param \Closure(): mixed $watch
     * @param \Closure(): void $onEvent
     */
    public function run(
        string $queue,
        string $body,
        float $timeout,
        Log $log,
        \Closure $watch,
        \Closure $onEvent,
        bool $memory = false,
        ?string $level = null,
        int $tries = 1,
    ): Outcome {
        $this->number++;
        $this->output->begin($log);
        $deadline = self::now() + $timeout;
        $head = ['type' => 'run', 'number' => $this->number, 'queue' => $queue, 'memory' => $memory]
            + ['level' => $level, 'tries' => $tries];
        $this->handOver(Frames::encode($head, $body), $deadline);
        $message = $this->await($deadline, $watch, $onEvent);
        if ($message !== null) {
            if ($message['ends'] ?? false) {
                // It says so itself: exit() or a fatal error in the job.
                $this->stop();
            }
            $this->output->begin($this->log);
            return $this->outcome($message);
        }
        $this->output->finish();
        $died = $this->broken !== null || $this->ended();
        if (!$died) {
            $this->abort();
        }
        $broken = $this->broken;
        $this->kill();
        if ($broken !== null) {
            [$class, $reason] = ['BrokenChild', "The process that ran the job sent nonsense: $broken."];
        } elseif ($died) {
            [$class, $reason] = ['ChildDied', "The process that ran the job died: {$this->ending}."];
        } else {
            $class = 'JobTimeout';
            $reason = sprintf('The job took longer than %s s and was killed.', self::seconds($timeout));
        }
        $error = ['class' => $class, 'message' => $reason, 'stack' => $this->output->tail()];
        $this->output->begin($this->log);
        return new Outcome(false, $reason, $error, died: $died);
    }

    /** End an idle child: it gets STOP_GRACE seconds, then it is killed. */
    public function stop(): void
    {
        if ($this->pid === null) {
            return;
        }
        $this->closeSocket();
        $deadline = self::now() + self::STOP_GRACE;
        while (!$this->ended() && ($left = $deadline - self::now()) > 0) {
            $this->poll($left);
        }
        if (!$this->ended()) {
            $this->log->warning('child did not end and is killed', ['child' => $this->pid]);
            $this->kill();
            return;
        }
        // What it left running in the background is not ours to end.
        $this->reap();
        $this->output->finish();
    }

    /** Kill the child and what it started, at once. */
    public function kill(): void
    {
        if ($this->pid === null) {
            return;
        }
        // Its group is killed before the child is waited for: until then nobody else can get the number.
        posix_kill(-$this->pid, SIGKILL);
        posix_kill($this->pid, SIGKILL);
        $this->reap();
        $this->output->finish();
    }

    /** Wait, logging what is printed meanwhile; return early at any signal. */
    public function wait(float $seconds): void
    {
        $deadline = self::now() + $seconds;
        while (($left = $deadline - self::now()) > 0) {
            if ($this->poll($left)) {
                return;
            }
        }
    }

    /**
     * Return the child's next answer; null when it died, sent nonsense, or the time is over.
     *
     * @param ?\Closure(): mixed $watch
     * @param ?\Closure(): void $onEvent
     * @return ?array<string, mixed>
     */
    private function await(
        float $deadline,
        ?\Closure $watch = null,
        ?\Closure $onEvent = null,
        bool $untilTold = false,
    ): ?array {
        $silent = false;
        if ($this->socket !== null) {
            // An answer takes a moment; to ask for it at once would be in vain.
            $this->poll($deadline - self::now(), $watch === null ? null : $watch(), $onEvent);
        }
        while (true) {
            // Looked at before its messages: what it sent before it died is then complete.
            $ended = $this->ended();
            $this->readMessages();
            if ($this->inbox !== []) {
                return array_shift($this->inbox);
            }
            if ($this->socket === null && !$silent) {
                $silent = true;
                $deadline = min($deadline, self::now() + self::STOP_GRACE);
            }
            $left = $deadline - self::now();
            if ($left <= 0 && $silent && !$ended) {
                $this->broken = 'it closed its connection to the worker';
            }
            if (
                $ended || $this->broken !== null || $left <= 0
                || ($untilTold && $this->signals->stop !== null)
            ) {
                return null;
            }
            $this->poll($left, $watch === null ? null : $watch(), $onEvent);
        }
    }

    /**
     * Wait for anything to happen; say whether it was a signal.
     *
     * @param ?resource $watched
     * @param ?\Closure(): void $onEvent
     */
    private function poll(float $seconds, $watched = null, ?\Closure $onEvent = null): bool
    {
        $read = $this->output->streams();
        if ($this->socket !== null) {
            $read[] = $this->socket;
        }
        if ($watched !== null) {
            $read[] = $watched;
        }
        $none = null;
        $wait = $this->signals->waiting() ? 0 : (int) (max(0, min($seconds, self::LOOK_AROUND)) * 1e6);
        $ready = @stream_select($read, $none, $none, 0, $wait);
        if ($ready !== false && $ready > 0) {
            // The child's answer alone is the usual case.
            if ($ready > 1 || $read[array_key_first($read)] !== $this->socket) {
                $this->output->drain();
            }
            if ($watched !== null && $onEvent !== null && in_array($watched, $read, true)) {
                $onEvent();
            }
        }
        return $this->signals->came();
    }

    private function handOver(string $data, float $deadline): void
    {
        // When sending fails the child has died, or has not read for the whole time: both are seen afterwards.
        while ($data !== '' && $this->socket !== null) {
            $written = @fwrite($this->socket, $data);
            if ($written === false) {
                return;
            }
            if ($written === strlen($data)) {
                return;
            }
            $data = substr($data, $written);
            $left = $deadline - self::now();
            if ($left <= 0 || $this->ended()) {
                return;
            }
            $read = $this->output->streams();
            $write = [$this->socket];
            $none = null;
            @stream_select($read, $write, $none, 0, (int) (min($left, self::LOOK_AROUND) * 1e6));
            $this->output->drain();
        }
    }

    private function readMessages(): void
    {
        // A flood in parts, so that the caller keeps its deadlines.
        for ($turn = 0; $turn < self::AT_ONCE && $this->socket !== null && $this->broken === null; $turn++) {
            $data = @fread($this->socket, self::CHUNK);
            if ($data === false || $data === '') {
                if (feof($this->socket)) {
                    $this->closeSocket();
                }
                return;
            }
            try {
                foreach ($this->frames->feed($data) as [$message, $body]) {
                    $this->sort($message, $body);
                }
            } catch (BrokenFrame $broken) {
                $this->broken = $broken->getMessage();
            }
            if (strlen($data) < self::CHUNK && $this->inbox !== []) {
                return;
            }
        }
    }

    /** @param array<string, mixed> $message */
    private function sort(array $message, string $body): void
    {
        $kind = $message['type'] ?? null;
        if ($kind === 'log') {
            $this->output->drain();
            $this->logForJob($message);
        } elseif ($kind === 'envelope') {
            $this->reporter?->pass($body);
        } elseif (
            $kind === 'ready' || $kind === 'unusable'
            || ($kind === 'result' && ($message['number'] ?? null) === $this->number)
        ) {
            $this->inbox[] = $message;
        }
    }

    /**
     * Write a line of a job's, or keep it back; no field of it may pass for one of the worker's own.
     *
     * @param array<string, mixed> $message
     */
    private function logForJob(array $message): void
    {
        ['level' => $level, 'event' => $event, 'of' => $of, 'fields' => $fields] = $message
            + ['level' => null, 'event' => null, 'of' => null, 'fields' => null];
        if (!in_array($level, Log::LEVELS, true) || !is_string($event) || !is_array($of) || !is_array($fields)) {
            return;
        }
        $line = $of;
        foreach ($fields as $name => $content) {
            $line[isset($of[$name]) || isset(Line::OWN_KEYS[$name]) ? "{$name}_" : $name] = $content;
        }
        if ($level === 'debug') {
            $this->kept->add($event, $line);
        }
        $this->log->log($level, $event, $line);
    }

    /** @param array<string, mixed> $message */
    private function outcome(array $message): Outcome
    {
        $memory = is_int($message['memory'] ?? null) ? $message['memory'] : 0;
        $outcome = $message['outcome'] ?? null;
        if ($outcome === 'done') {
            return new Outcome(true, memory: $memory);
        }
        if ($outcome === 'unknown') {
            $reason = "{$this->app} has no job of this name; it has: " . implode(', ', $this->jobs) . '.';
            $error = ['class' => 'UnknownJob', 'message' => $reason, 'stack' => ''];
            return new Outcome(false, $reason, $error, $memory, asks: 'park');
        }
        $error = [];
        foreach (['class' => 'Unknown', 'message' => '', 'stack' => ''] as $key => $otherwise) {
            $text = $message['error'][$key] ?? '';
            $error[$key] = is_string($text) && $text !== '' ? $text : $otherwise;
        }
        $reason = is_string($message['reason'] ?? null) ? $message['reason'] : '';
        $event = $message['report'] ?? null;
        return new Outcome(
            false,
            $reason === '' ? "The job raised {$error['class']}." : $reason,
            $error,
            $memory,
            in_array($message['asks'] ?? null, ['park', 'retry'], true) ? $message['asks'] : null,
            is_int($message['delay'] ?? null) ? $message['delay'] : null,
            replace: (bool) ($message['replace'] ?? false),
            event: is_array($event) && is_string($event['event_id'] ?? null) ? $event : null,
            eventId: is_string($message['sentry_event'] ?? null) ? $message['sentry_event'] : null,
            repeated: is_string($message['repeated'] ?? null) ? $message['repeated'] : null,
        );
    }

    /** Say whether the child has ended. It is not waited for yet: see `kill`. */
    private function ended(): bool
    {
        if ($this->pid === null) {
            return true;
        }
        if (!$this->signals->child && $this->socket !== null) {
            // No child has ended since this was last looked at.
            return false;
        }
        $this->signals->child = false;
        $status = @file_get_contents("/proc/{$this->pid}/stat");
        if ($status === false) {
            return true;
        }
        $state = substr($status, (int) strrpos($status, ')') + 2, 1);
        if ($state !== 'Z' && $state !== 'X') {
            return false;
        }
        $this->signals->child = true;
        return true;
    }

    private function reap(): void
    {
        $this->closeSocket();
        if ($this->pid !== null) {
            do {
                $found = pcntl_waitpid($this->pid, $status);
            } while ($found === -1 && pcntl_get_last_error() === PCNTL_EINTR);
            $this->ending = $found === -1 ? 'nobody knows how' : self::describe($status);
            // Now that it is gone, letting go of it waits for nobody.
            $this->process = null;
            $this->pid = null;
        }
    }

    /** Have a hanging child print its stack, for the parked record. */
    private function abort(): void
    {
        posix_kill((int) $this->pid, SIGABRT);
        $deadline = self::now() + self::ABORT_GRACE;
        while (!$this->ended() && ($left = $deadline - self::now()) > 0) {
            $this->poll($left);
        }
    }

    private function closeSocket(): void
    {
        if ($this->socket !== null) {
            fclose($this->socket);
            $this->socket = null;
        }
    }

    private static function describe(int $status): string
    {
        if (pcntl_wifexited($status)) {
            return 'it exited with status ' . pcntl_wexitstatus($status);
        }
        $number = pcntl_wtermsig($status);
        foreach (get_defined_constants(true)['pcntl'] ?? [] as $name => $value) {
            if ($value === $number && preg_match('/^SIG[A-Z][A-Z0-9]*$/D', $name) === 1 && $name !== 'SIGIOT') {
                return "it was killed by $name";
            }
        }
        return "it was killed by signal $number";
    }

    /** Return a number of seconds as short as it can be written. */
    private static function seconds(float $seconds): string
    {
        return (string) (float) sprintf('%.6g', $seconds);
    }

    private static function now(): float
    {
        return hrtime(true) / 1e9;
    }
}
