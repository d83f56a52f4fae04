<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Support;

/** A program that a test runs beside itself; it is killed when the object goes. */
final class Program
{
    /** Seconds until a condition that a test waits for must be true. */
    public const DEADLINE = 20.0;

    /** @var resource */
    private $process;
    private string $log;

    /**
     * @param list<string> $command
     * @param array<string, string> $environ added to the test's own
     */
    public function __construct(array $command, array $environ = [])
    {
        $this->log = (string) tempnam(sys_get_temp_dir(), 'kestrel-stack-test-');
        $streams = [['file', '/dev/null', 'r'], ['file', $this->log, 'a'], ['file', $this->log, 'a']];
        $process = proc_open($command, $streams, $_, null, $environ + getenv());
        if ($process === false) {
            throw new \RuntimeException("$command[0] could not be started");
        }
        $this->process = $process;
    }

    public function __destruct()
    {
        $this->kill();
        @unlink($this->log);
    }

    public function pid(): int
    {
        return proc_get_status($this->process)['pid'];
    }

    public function runs(): bool
    {
        return is_resource($this->process) && proc_get_status($this->process)['running'];
    }

    /** What it has printed so far. */
    public function log(): string
    {
        return (string) file_get_contents($this->log);
    }

    /** SIGKILL, and returns when it is gone. */
    public function kill(): void
    {
        if (is_resource($this->process)) {
            proc_terminate($this->process, 9);
            proc_close($this->process);
        }
    }

    /** Waits until `$condition` is true; throws with the program's log when it ends or that takes too long. */
    public function waitUntil(callable $condition, string $what): void
    {
        self::wait(
            fn (): bool => $condition() || !$this->runs(),
            fn (): string => "$what; it printed: " . $this->log(),
        );
        if (!$condition()) {
            throw new \RuntimeException("it ended before $what; it printed: " . $this->log());
        }
    }

    /** Waits until `$condition` is true. */
    public static function wait(callable $condition, string|\Closure $what): void
    {
        $deadline = microtime(true) + self::DEADLINE;
        while (!$condition()) {
            if (microtime(true) > $deadline) {
                throw new \RuntimeException('waited in vain for ' . (is_string($what) ? $what : $what()));
            }
            usleep(5000);
        }
    }

    /** A folder of its own below the system's temporary one. */
    public static function folder(): string
    {
        $folder = sys_get_temp_dir() . '/kestrel-stack-test-' . bin2hex(random_bytes(6));
        mkdir($folder);
        return $folder;
    }

    public static function remove(string $folder): void
    {
        foreach (array_diff((array) scandir($folder), ['.', '..']) as $name) {
            is_dir("$folder/$name") ? self::remove("$folder/$name") : unlink("$folder/$name");
        }
        rmdir($folder);
    }
}
