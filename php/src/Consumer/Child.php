<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * The child: one long-lived process that loads the application and runs its jobs.
 *
 * It holds no connection to any queue server. It is started by Runner as `consumer-child PARENT FILE.php` with
 * the connection to its parent as descriptor 3, and ends with its parent.
 */
final class Child
{
    /** Longest stack and message of an error that is reported, in bytes. */
    public const MAX_STACK = 16 * 1024;
    public const MAX_MESSAGE = 4 * 1024;
    /** The descriptor of the connection to the parent. */
    public const DESCRIPTOR = 3;

    /** Bytes of a page of memory in Debian's kernels for amd64 and arm64. */
    private const PAGE = 4096;

    /** Errors of PHP itself that end the process, whatever a job would catch. */
    private const FATAL = E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR;

    private readonly Pipe $pipe;
    private ?Registry $registry = null;
    /** What the parent waits for: an answer to the job of this number, or (0) that the application is loaded. */
    private ?int $number = null;
    /** Whether the parent wants to know how large this process is. */
    private bool $memory = false;
    /** Sentry's level of the job in hand if it fails; null when nobody wants to know. */
    private ?string $level = null;
    private ?Reporting $reporting = null;
    /** Memory that is given back when PHP has none left, so that this can still be told. */
    private ?string $reserve = null;

    /** @param resource $stream the connection to the parent */
    private function __construct($stream, private readonly string $app)
    {
        $this->pipe = new Pipe($stream);
    }

    /**
     * Run jobs until the parent closes the connection or goes away.
     *
     * @param list<string> $arguments the parent's process id and the application's file
     */
    public static function main(array $arguments): int
    {
        $stream = count($arguments) === 2 ? @fopen('php://fd/' . self::DESCRIPTOR, 'r+') : false;
        if ($stream === false) {
            fwrite(STDERR, "consumer-child is started by a worker: see consumer --help\n");
            return Cli::EX_CONFIG;
        }
        [$parent, $app] = $arguments;
        // A group of its own: what is sent to the worker's group is for the worker to decide, and what a hanging
        // job has started can be killed with it.
        posix_setpgid(0, 0);
        if (posix_getppid() !== (int) $parent) {
            return 0;
        }
        return (new self($stream, $app))->work();
    }

    private function work(): int
    {
        $this->leaveSignalsToParent();
        register_shutdown_function($this->atEnd(...));
        $this->reserve = str_repeat('x', 64 * 1024);
        $this->number = 0;
        $problem = $this->load();
        $this->number = null;
        if ($this->registry === null) {
            $this->pipe->send(['type' => 'unusable'] + $problem);
            return 0;
        }
        $this->reporting = $this->reporting();
        $this->pipe->send(['type' => 'ready', 'jobs' => $this->registry->names()]);
        while (($message = $this->pipe->receive()) !== null) {
            [$head, $body] = $message;
            $this->number = (int) $head['number'];
            $this->memory = (bool) ($head['memory'] ?? false);
            $this->level = $head['level'] ?? null;
            $this->answer($this->run($head, $body));
        }
        return 0;
    }

    /**
     * Load the application's file, which must return a registry.
     *
     * @return array{message?: string, stack?: string} what is wrong
     */
    private function load(): array
    {
        $file = str_starts_with($this->app, '/') ? $this->app : getcwd() . '/' . $this->app;
        if (!is_file($file)) {
            return ['message' => "there is no such file: $file", 'stack' => ''];
        }
        if (!is_readable($file)) {
            return ['message' => "the file may not be read by this user: $file", 'stack' => ''];
        }
        try {
            // Without the scope of this class, which is none of the application's business.
            $found = \Closure::bind(static fn (): mixed => require $file, null, null)();
        } catch (\Throwable $thrown) {
            $message = Text::className($thrown) . ': ' . self::message($thrown)
                . " ({$thrown->getFile()} line {$thrown->getLine()})";
            return ['message' => Text::clean($message), 'stack' => self::stack($thrown)];
        }
        if (!$found instanceof Registry) {
            $what = $found === 1 ? 'nothing' : 'a ' . get_debug_type($found);
            $message = "it returns $what, not a Registry; its last line must be: return \$registry;";
            return ['message' => $message, 'stack' => ''];
        }
        if ($found->names() === []) {
            return ['message' => 'the registry has no jobs', 'stack' => ''];
        }
        $this->registry = $found;
        return [];
    }

    /**
     * Do the job in $body, an envelope that the parent has checked; return what it must know of the end.
     *
     * @param array<string, mixed> $head
     * @return array<string, mixed>
     */
    private function run(array $head, string $body): array
    {
        assert($this->registry !== null);
        $job = json_decode($body, true, flags: JSON_BIGINT_AS_STRING);
        $attempt = (int) $job['attempt'];
        $of = ['queue' => $head['queue'], 'job' => $job['job'], 'id' => $job['id'], 'tenant' => $job['tenant']]
            + ['attempt' => $attempt];
        $pipe = $this->pipe;
        $reporting = $this->level === null ? null : $this->reporting;
        $release = self::variable('KESTREL_STACK_RELEASE');
        $reporting?->begin([
            'job' => $job['job'],
            'queue' => $head['queue'],
            'tenant' => $job['tenant'],
            'attempt' => $attempt,
            'release' => $release,
            'job_id' => $job['id'],
        ], static fn (): array => self::contexts($job, (int) ($head['tries'] ?? 1)));
        $context = new Context(
            job: $job['job'],
            id: $job['id'],
            tenant: $job['tenant'],
            attempt: $attempt,
            enqueuedAt: (int) $job['enqueued_at'],
            trace: $job['trace'] ?? null,
            environment: self::variable('KESTREL_STACK_ENVIRONMENT'),
            release: $release,
            log: new Log(static function (string $level, string $event, array $fields) use (
                $pipe,
                $of,
                $reporting,
            ): void {
                $pipe->log($of, $level, $event, $fields);
                $reporting?->crumb($level, $event, $fields);
            }),
            queue: $head['queue'],
        );
        $buffers = ob_get_level();
        $answer = $this->call($job['data'], $context);
        while (ob_get_level() > $buffers) {
            ob_end_flush();
        }
        return $answer;
    }

    /**
     * Return what Sentry may know of a job; its data is nobody's business but the application's.
     *
     * @param array<string, mixed> $job
     * @return array<string, array<string, mixed>>
     */
    private static function contexts(array $job, int $tries): array
    {
        $found = ['job' => [
            'type' => 'job',
            'id' => $job['id'],
            'attempt' => "{$job['attempt']} of $tries",
            'enqueued_at' => Line::stamp((int) $job['enqueued_at']),
        ]];
        $trace = Sentry::trace($job['trace'] ?? null);
        return $found + ($trace === null ? [] : ['trace' => ['type' => 'trace'] + $trace]);
    }

    /**
     * @param array<array-key, mixed> $data
     * @return array<string, mixed>
     */
    private function call(array $data, Context $context): array
    {
        assert($this->registry !== null);
        $begun = false;
        $thrown = null;
        try {
            $function = $this->registry->get($context->job);
            if ($function === null) {
                return ['outcome' => 'unknown'];
            }
            $work = static function () use ($function, $data, $context, &$begun, &$thrown): void {
                if ($begun) {
                    throw new \LogicException('what is registered around jobs has run the job twice');
                }
                $begun = true;
                try {
                    $returned = $function($data, $context);
                    if ($returned instanceof \Generator) {
                        throw new \TypeError('the job returned a Generator, which nobody would run');
                    }
                } catch (\Throwable $thrown) {
                    throw $thrown;
                }
            };
            $this->registry->within($context, $work);
            if (!$begun) {
                throw new \LogicException('what is registered around jobs has not run the job');
            }
            // Caught by what is around it, which must not make a failure a success.
            return $thrown === null ? ['outcome' => 'done'] : $this->failure($thrown);
        } catch (\Throwable $raised) {
            $answer = $this->failure($raised);
            if ($begun && $raised !== $thrown) {
                // Clearing failed: what was set for this tenant must not be there for the next one.
                $answer['replace'] = true;
            }
            return $answer;
        }
    }

    /** @param array<string, mixed> $answer */
    private function answer(array $answer): void
    {
        if (!$this->pipe->isOurs()) {
            // The job forked and its copy came back here: it must not go on as if it were the worker's child,
            // nor run what the application has registered for the end.
            posix_kill(getmypid(), SIGKILL);
        }
        $head = ['type' => 'result', 'number' => $this->number];
        $this->number = null;
        if ($this->memory) {
            $head['memory'] = self::memory();
        }
        $this->pipe->send($head + $answer);
    }

    /**
     * Return what the parent must know of a job that ended with $thrown.
     *
     * @return array<string, mixed>
     */
    private function failure(\Throwable $thrown): array
    {
        $error = [
            'class' => Text::className($thrown),
            'message' => self::message($thrown),
            'stack' => self::stack($thrown),
        ];
        $answer = ['outcome' => 'failed', 'error' => $error] + $this->reported($thrown, $error);
        if ($thrown instanceof Park) {
            $answer += ['asks' => 'park', 'reason' => Text::head($thrown->reason, self::MAX_MESSAGE)];
        } elseif ($thrown instanceof Retry) {
            $answer += ['asks' => 'retry', 'delay' => $thrown->delay];
        }
        return $answer;
    }

    private function reporting(): ?Reporting
    {
        $dsn = self::variable('SENTRY_DSN');
        if ($dsn === null) {
            return null;
        }
        if (!SdkReporting::isThere()) {
            return new OwnReporting();
        }
        $environment = self::variable('KESTREL_STACK_ENVIRONMENT');
        try {
            return new SdkReporting($this->pipe, $dsn, $environment, self::variable('KESTREL_STACK_RELEASE'));
        } catch (\Throwable $exc) {
            fwrite(STDERR, 'sentry/sentry cannot be used, the worker reports by itself: ' . self::message($exc) . "\n");
            return new OwnReporting();
        }
    }

    /**
     * Report the failure of the job in hand; return what the result says of that.
     *
     * @param array{class: string, message: string, stack: string} $error
     * @return array<string, mixed>
     */
    private function reported(?\Throwable $thrown, array $error): array
    {
        if ($this->reporting === null || $this->level === null) {
            return [];
        }
        $level = $thrown instanceof Park ? 'error' : $this->level;
        try {
            return $this->reporting->failed($thrown, $error, $level);
        } catch (\Throwable $exc) {
            // The job's own error counts, and not that of a library which was to report it.
            fwrite(STDERR, 'not reported to Sentry: ' . Text::className($exc) . "\n");
            return [];
        }
    }

    /** Tell the parent about a job, or an application, that ended the process: exit() or a fatal error. */
    private function atEnd(): void
    {
        $this->reserve = null;
        if ($this->number === null || !$this->pipe->isOurs()) {
            return;
        }
        $last = error_get_last();
        $where = '';
        if ($last !== null && ($last['type'] & self::FATAL) !== 0) {
            $class = 'FatalError';
            [$message] = explode("\nStack trace:\n", $last['message'], 2);
            $where = "{$last['file']} line {$last['line']}";
        } else {
            $class = 'Exit';
            $message = 'exit() was called, which ends the process that runs jobs';
        }
        $message = Text::head($message, self::MAX_MESSAGE);
        if ($this->number === 0) {
            $told = "$class: $message" . ($where === '' ? '' : " ($where)");
            $this->pipe->send(['type' => 'unusable', 'message' => Text::clean($told), 'stack' => '']);
            return;
        }
        $stack = Text::clean("$class: $message" . ($where === '' ? '' : "\n  in $where"));
        $error = ['class' => $class, 'message' => $message, 'stack' => $stack];
        $this->answer(
            ['outcome' => 'failed', 'error' => $error, 'replace' => true, 'ends' => true]
                + $this->reported(null, $error),
        );
    }

    private function leaveSignalsToParent(): void
    {
        $process = getmypid();
        pcntl_async_signals(true);
        foreach ([SIGTERM, SIGINT, SIGHUP, SIGUSR1] as $number) {
            // A handler that does nothing, not SIG_IGN: programs that a job starts would inherit being deaf.
            pcntl_signal($number, static function (int $number) use ($process): void {
                if (getmypid() !== $process) {
                    // A copy that a job made is not the worker's; it is as deaf as any program.
                    pcntl_signal($number, SIG_DFL);
                    posix_kill(getmypid(), $number);
                }
            });
        }
        // This is how the parent ends a job that takes too long: where it hangs is printed for the record.
        pcntl_signal(SIGABRT, static function (): void {
            fwrite(STDERR, 'It is aborted' . Stack::text(new \Exception()) . "\n");
            posix_kill(getmypid(), SIGKILL);
        });
    }

    private static function message(\Throwable $thrown): string
    {
        return Text::head($thrown->getMessage(), self::MAX_MESSAGE);
    }

    /** Return where it happened and who called that, also for the errors that led to this one. */
    private static function stack(\Throwable $thrown): string
    {
        $text = '';
        for ($at = $thrown, $turn = 0; $at !== null && $turn < 10; $at = $at->getPrevious(), $turn++) {
            $text .= $turn > 0 ? "\n\nCaused by " : '';
            $text .= Text::className($at) . ': ' . self::message($at) . Stack::text($at);
        }
        // The beginning says where it happened.
        return Text::head($text, self::MAX_STACK);
    }

    /** Return the memory that this process occupies, in bytes. */
    private static function memory(): int
    {
        $sizes = @file_get_contents('/proc/self/statm');
        return $sizes === false ? memory_get_usage(true) : (int) explode(' ', $sizes)[1] * self::PAGE;
    }

    private static function variable(string $name): ?string
    {
        $value = getenv($name);
        return $value === false || $value === '' ? null : $value;
    }
}
