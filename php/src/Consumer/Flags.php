<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Errors\SettingsError;
use KestrelStack\Queue\Settings;
use KestrelStack\Queue\Text as QueueText;

/** The worker's flags; the same for every language. */
final class Flags
{
    /** Seconds; more than supervisor's startsecs: it takes any earlier exit for a failed start. */
    public const MIN_UPTIME = 5.0;

    public const HELP = <<<'TEXT'
        usage: consumer [-h] --queue NAME[,NAME…] --app FILE.php [--config FILE]
                        [--servers HOST:PORT,…] [--namespace NAMESPACE] [--env NAME]
                        [--max-jobs N] [--max-memory MB] [--max-time S] [--job-timeout S]
                        [--rate N/s] [--debug] [--log-file FILE] [--once]

        Take jobs from a queue and run the application's functions for them.

        options:
          -h, --help            show this help message and exit
          --queue NAME[,NAME…]  the queue's name in the settings file, for example
                                hello_world; of several, a job of the first is taken
                                before any of the others (default: after a queue come
                                those in its 'also')
          --app FILE.php        a file that returns a KestrelStack\Consumer\Registry, for
                                example jobs.php
          --config FILE         settings file (default: the only one in /etc/kestrel-stack)
          --servers HOST:PORT,…
                                queue servers, instead of those in the settings file; or
                                beanstalkd://HOST:PORT
          --namespace NAMESPACE
                                instead of that in the settings file
          --env NAME            environment, instead of that in the settings file
          --max-jobs N          end after so many jobs
          --max-memory MB       replace the process that runs jobs above this size
          --max-time S          end after so many seconds
          --job-timeout S       kill a job that takes longer; it has failed
          --rate N/s            start at most so many jobs per second
          --debug               log every action, as text
          --log-file FILE       log to the end of this file instead of stderr; USR1 opens
                                it again
          --once                do one job if there is one, and end

        Signals: TERM finishes the job in hand and ends; HUP replaces the process that runs
        jobs after the job in hand; USR1 reopens logs. Exit status: 0 done; 78 wrong flags,
        settings or application. The log is one JSON object a line; one line, with the event
        job, for each job.

        TEXT;

    private const WITH_VALUE = [
        'queue', 'app', 'config', 'servers', 'namespace', 'env', 'max-jobs', 'max-memory', 'max-time', 'job-timeout',
        'rate', 'log-file', 'min-uptime',
    ];
    private const SWITCHES = ['debug', 'once', 'help'];

    public string $queue = '';
    public string $app = '';
    public ?string $config = null;
    public ?string $servers = null;
    public ?string $namespace = null;
    public ?string $env = null;
    public ?int $maxJobs = null;
    public ?int $maxMemory = null;
    public ?float $maxTime = null;
    public ?float $jobTimeout = null;
    public ?float $rate = null;
    public bool $debug = false;
    public ?string $logFile = null;
    public bool $once = false;
    public float $minUptime = self::MIN_UPTIME;
    public bool $help = false;

    private function __construct()
    {
    }

    /**
     * @param list<string> $arguments
     * @throws UsageError with one line on what is wrong
     */
    public static function parse(array $arguments): self
    {
        $flags = new self();
        $seen = [];
        $unknown = [];
        while ($arguments !== []) {
            $argument = array_shift($arguments);
            [$name, $value] = explode('=', $argument, 2) + [1 => null];
            $name = $name === '-h' ? 'help' : (str_starts_with($name, '--') ? substr($name, 2) : '');
            if (in_array($name, self::SWITCHES, true)) {
                if ($value !== null) {
                    throw self::wrong("argument --$name: ignored explicit argument " . QueueText::quote($value));
                }
                if ($name === 'help') {
                    $flags->help = true;
                    return $flags;
                }
                $flags->$name = true;
            } elseif (in_array($name, self::WITH_VALUE, true)) {
                if ($value === null && ($arguments === [] || str_starts_with($arguments[0], '-'))) {
                    throw self::wrong("argument --$name: expected one argument");
                }
                $flags->take($name, $value ?? array_shift($arguments));
                $seen[$name] = true;
            } else {
                $unknown[] = $argument;
            }
        }
        $missing = array_filter(['queue', 'app'], static fn (string $name): bool => !isset($seen[$name]));
        if ($missing !== []) {
            $listed = implode(', ', array_map(static fn (string $name): string => "--$name", $missing));
            throw self::wrong("the following arguments are required: $listed");
        }
        if ($unknown !== []) {
            $listed = implode(' ', array_map(Text::printable(...), $unknown));
            throw self::wrong("unrecognized arguments: $listed");
        }
        if (preg_match('/\A[^\x00]+\.php\z/', $flags->app) !== 1) {
            throw new UsageError(
                '--app ' . QueueText::quote($flags->app) . ' is not FILE.php, for example jobs.php',
            );
        }
        return $flags;
    }

    private function take(string $name, string $value): void
    {
        $property = lcfirst(str_replace('-', '', ucwords($name, '-')));
        try {
            $this->$property = match ($name) {
                'max-jobs', 'max-memory' => self::count($value),
                'max-time', 'job-timeout' => self::seconds($value),
                'rate' => Settings::parseRate($value),
                'min-uptime' => (float) $value,
                default => $value,
            };
        } catch (SettingsError | UsageError $exc) {
            throw self::wrong("argument --$name: " . rtrim($exc->getMessage(), '.'));
        }
    }

    private static function count(string $text): int
    {
        if (preg_match('/\A[0-9]{1,12}\z/', $text) !== 1 || (int) $text < 1) {
            throw new UsageError(QueueText::quote($text) . ' is not a whole number from 1 on');
        }
        return (int) $text;
    }

    private static function seconds(string $text): float
    {
        if (preg_match('/\A[0-9]{1,9}(\.[0-9]+)?\z/', $text) !== 1 || (float) $text <= 0) {
            throw new UsageError(QueueText::quote($text) . ' is not a number of seconds above 0');
        }
        return (float) $text;
    }

    private static function wrong(string $message): UsageError
    {
        return new UsageError("$message; see --help");
    }
}
