<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Errors\QueueError;
use KestrelStack\Queue\Errors\SettingsError;
use KestrelStack\Queue\KestrelStore;
use KestrelStack\Queue\Names;
use KestrelStack\Queue\Queue;
use KestrelStack\Queue\QueueSettings;
use KestrelStack\Queue\Server;
use KestrelStack\Queue\Settings;

/** The worker's command line. */
final class Cli
{
    public const EX_OK = 0;
    public const EX_DEFECT = 1;
    /** Exit status for what trying again would not mend: a wrong flag, settings file or application. */
    public const EX_CONFIG = 78;

    /**
     * Run a worker; return the exit status.
     *
     * @param list<string> $arguments
     * @param array<string, string> $environ
     */
    public static function main(array $arguments, array $environ): int
    {
        $started = hrtime(true) / 1e9;
        $lacking = array_filter(['pcntl', 'posix'], static fn (string $name): bool => !extension_loaded($name));
        if ($lacking !== []) {
            $listed = implode(' and ', $lacking);
            fwrite(STDERR, "consumer: this PHP lacks $listed, which a worker needs; Debian's php-cli has both\n");
            return self::unusable($started, $environ);
        }
        try {
            $flags = Flags::parse($arguments);
            if ($flags->help) {
                fwrite(STDOUT, Flags::HELP);
                return self::EX_OK;
            }
            $plan = self::plan($flags, $environ);
        } catch (UsageError | QueueError $exc) {
            fwrite(STDERR, 'consumer: ' . Text::printable($exc->getMessage()) . "\n");
            return self::unusable($started, $environ);
        }
        try {
            $writer = new Writer($plan->debug, file: $plan->logFile);
        } catch (\RuntimeException $exc) {
            fwrite(STDERR, 'consumer: --log-file ' . Text::printable("{$plan->logFile}: {$exc->getMessage()}") . "\n");
            return self::unusable($started, $environ);
        }
        return self::work($plan, $writer, $environ, $started);
    }

    /**
     * Return what to do.
     *
     * @param array<string, string> $environ
     * @throws UsageError|QueueError with one line on what is wrong
     */
    public static function plan(Flags $flags, array $environ): Plan
    {
        $found = self::settings($flags, $environ);
        $queues = self::queues($flags->queue, $found);
        if ($flags->jobTimeout !== null) {
            $timeout = ['jobTimeout' => (int) ceil($flags->jobTimeout)];
            $queues = array_map(
                static fn (QueueSettings $queue): QueueSettings => new QueueSettings(
                    ...$timeout + get_object_vars($queue),
                ),
                $queues,
            );
        }
        $namespace = $flags->namespace ?? $found?->namespace ?? $environ['KESTREL_STACK_NAMESPACE'] ?? '';
        $servers = $flags->servers ?? $found?->servers ?? $environ['KESTREL_STACK_SERVERS'] ?? '';
        $rules = [];
        foreach ($queues as $queue) {
            $rules[Names::make($namespace, $queue->name)] = new Rules(
                $flags->jobTimeout ?? (float) $queue->jobTimeout,
                $queue->retryDelays,
            );
        }
        $first = $queues[0];
        $store = self::store($servers, $namespace, $queues);
        return new Plan(
            rules: $rules,
            app: $flags->app,
            queues: array_map(static fn (QueueSettings $queue): string => $queue->name, $queues),
            servers: implode(',', $store instanceof KestrelStore ? $store->servers : [$servers]),
            store: $store,
            environment: $flags->env ?? $found?->environment ?? $environ['KESTREL_STACK_ENVIRONMENT'] ?? null,
            limits: new Limits(
                jobs: $flags->maxJobs ?? $first->maxJobs,
                time: $flags->maxTime ?? $first->maxTime,
                memory: $flags->maxMemory === null ? $first->maxMemory : $flags->maxMemory * 1_000_000,
                rate: $flags->rate ?? $first->rateLimit,
                minUptime: $flags->minUptime,
                once: $flags->once,
            ),
            start: self::processNumber($environ),
            debug: $flags->debug,
            logFile: $flags->logFile,
            host: $found?->host ?? (string) gethostname(),
            sentryDsn: ($environ['SENTRY_DSN'] ?? '') !== '' ? $environ['SENTRY_DSN'] : $found?->sentryDsn,
        );
    }

    /**
     * Return this worker's number in its program: 3 for `shop_mail_03`, 0 without supervisor.
     *
     * @param array<string, string> $environ
     */
    public static function processNumber(array $environ): int
    {
        $found = preg_match('/_([0-9]+)$/D', $environ['SUPERVISOR_PROCESS_NAME'] ?? '', $match);
        return $found === 1 ? (int) $match[1] : 0;
    }

    /** @param array<string, string> $environ */
    private static function work(Plan $plan, Writer $writer, array $environ, float $started): int
    {
        $log = $writer->log();
        // An item may be large, and how large is for the servers to say.
        ini_set('memory_limit', '-1');
        set_error_handler(static function (int $level, string $message, string $file, int $line) use ($log): bool {
            if ((error_reporting() & $level) !== 0) {
                $log->warning('PHP complains of the worker', ['error' => $message, 'where' => "$file line $line"]);
            }
            return true;
        });
        $signals = new Signals();
        $signals->install();
        $forChild = $environ;
        if ($plan->environment !== null) {
            $forChild['KESTREL_STACK_ENVIRONMENT'] = $plan->environment;
        }
        $reporter = self::reporter($plan, $environ, $forChild, $log);
        $runner = new Runner($plan->app, $log, $signals, $forChild, reporter: $reporter);
        $queues = [];
        foreach ($plan->queues as $name) {
            $queues[] = $plan->store->worker($name, $plan->start);
        }
        $queue = count($queues) === 1 ? $queues[0] : new PriorityQueue($queues);
        $worker = new Worker(
            $queue,
            $plan->rules,
            $runner,
            $signals,
            $writer,
            $plan->limits,
            $started,
            $reporter,
            $plan->limits->once ? null : self::responder($plan, $log),
        );
        $log->info('worker begins', [
            'queue' => $queue->name(),
            'app' => $plan->app,
            'servers' => $plan->servers,
            'environment' => $plan->environment,
            'release' => $environ['KESTREL_STACK_RELEASE'] ?? null,
            'pid' => getmypid(),
        ]);
        try {
            $worker->run();
        } catch (UnusableApp $exc) {
            $fields = ['app' => $plan->app, 'folder' => getcwd(), 'error' => $exc->getMessage()];
            $log->error('application cannot be used', $fields);
            $log->debug('where that comes from', ['stack' => $exc->stack]);
            return self::unusable($started, $environ, $signals, $runner);
        } catch (\Throwable $exc) {
            $where = "{$exc->getFile()} line {$exc->getLine()}";
            $error = Text::className($exc) . ': ' . $exc->getMessage();
            $log->error('the worker has a defect', ['error' => $error, 'where' => $where]);
            $log->debug('where that comes from', ['stack' => $exc->getTraceAsString()]);
            return self::EX_DEFECT;
        } finally {
            $reporter?->close();
        }
        return self::EX_OK;
    }

    /** Return what answers the pings for the first queue, null when its name is too long for theirs. */
    private static function responder(Plan $plan, Log $log): ?Responder
    {
        try {
            Names::ping((string) array_key_first($plan->rules), $plan->host);
        } catch (QueueError $exc) {
            $log->warning('pings are not answered', ['error' => $exc->getMessage()]);
            return null;
        }
        // The physical folder: `current` may have been moved on since this worker was started.
        $release = basename((string) getcwd());
        return new Responder($plan->queues[0], $plan->host, $release === '' ? '/' : $release, (int) getmypid(), $log);
    }

    /**
     * Return what reports failed jobs, null without a DSN; tell the child of it in its environment.
     *
     * @param array<string, string> $environ
     * @param array<string, string> $forChild
     */
    private static function reporter(Plan $plan, array $environ, array &$forChild, Log $log): ?Reporter
    {
        unset($forChild['SENTRY_DSN']);
        if (($plan->sentryDsn ?? '') === '') {
            return null;
        }
        try {
            Sentry::at($plan->sentryDsn);
        } catch (\InvalidArgumentException $exc) {
            // Jobs must not stand still for it.
            $log->error('errors are not reported', ['error' => $exc->getMessage()]);
            return null;
        }
        $forChild['SENTRY_DSN'] = $plan->sentryDsn;
        $forChild['KESTREL_STACK_HOST'] = $plan->host;
        return new Reporter($plan->sentryDsn, $log, [
            'release' => $environ['KESTREL_STACK_RELEASE'] ?? null,
            'environment' => $plan->environment,
            'server_name' => $plan->host,
        ]);
    }

    /** @param array<string, string> $environ */
    private static function unusable(
        float $started,
        array $environ,
        ?Signals $signals = null,
        ?Runner $runner = null,
    ): int {
        // Supervisor restarts whatever ends within startsecs; later, it sees that 78 means to stay down.
        while (
            ($environ['SUPERVISOR_ENABLED'] ?? '') !== ''
            && ($left = $started + Flags::MIN_UPTIME - hrtime(true) / 1e9) > 0
            && $signals?->stop === null
        ) {
            $runner === null ? usleep((int) ($left * 1e6) + 1000) : $runner->wait($left);
        }
        return self::EX_CONFIG;
    }

    /**
     * Return the settings, or null when there is no file and the rest says all that is needed.
     *
     * @param array<string, string> $environ
     */
    private static function settings(Flags $flags, array $environ): ?Settings
    {
        try {
            Settings::find($flags->config, $environ);
        } catch (SettingsError $exc) {
            $servers = $flags->servers ?? $environ['KESTREL_STACK_SERVERS'] ?? '';
            $namespace = $flags->namespace ?? $environ['KESTREL_STACK_NAMESPACE'] ?? '';
            if ($servers !== '' && $namespace !== '') {
                return null;
            }
            throw $exc;
        }
        return Settings::load($flags->config, $environ);
    }

    /**
     * @param string|list<Server> $servers
     * @param non-empty-list<QueueSettings> $queues
     */
    private static function store(string|array $servers, string $namespace, array $queues): Queue
    {
        if (is_array($servers) || !str_contains($servers, '://')) {
            return new KestrelStore($namespace, $servers, $queues);
        }
        if (str_starts_with($servers, 'memory:')) {
            throw new UsageError('--servers: memory:// is inside of one process; a worker needs a server');
        }
        return Queue::open(rtrim($servers, '/') . "/$namespace", $queues);
    }

    /**
     * Return the queues to work on, by priority.
     *
     * @return non-empty-list<QueueSettings>
     */
    private static function queues(string $text, ?Settings $found): array
    {
        $wanted = explode(',', $text);
        $one = static fn (string $name): QueueSettings => $found?->queue($name)
            ?? new QueueSettings($name, language: 'php');
        $queues = array_map($one, $wanted);
        if (count($queues) === 1) {
            $queues = [$queues[0], ...array_map($one, $queues[0]->also)];
        }
        $seen = [];
        foreach ($queues as $queue) {
            if ($queue->language !== 'php') {
                throw new UsageError("the queue {$queue->name} is for {$queue->language} workers, not for PHP");
            }
            if (isset($seen[$queue->name])) {
                throw new UsageError("--queue names {$queue->name} twice");
            }
            $seen[$queue->name] = true;
        }
        return $queues;
    }
}
