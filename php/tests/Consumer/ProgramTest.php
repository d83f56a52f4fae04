<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Program;
use KestrelStack\Tests\Support\Program as Started;
use PHPUnit\Framework\TestCase;

final class ProgramTest extends TestCase
{
    private const LIST = [
        ...['/bin/sh', '-c', 'for file in /proc/self/fd/*; do readlink "$file"; done; echo "$0 $@"'],
        ...['a b', 'c'],
    ];

    public function testAProgramGetsNoneOfTheWorkersConnections(): void
    {
        $connection = stream_socket_server('tcp://127.0.0.1:0');
        self::assertStringContainsString('socket:[', $this->output(self::LIST), 'PHP passes it on by itself');
        $output = $this->output(Program::of(2, self::LIST));
        self::assertStringNotContainsString('socket:[', $output);
        self::assertStringEndsWith("\na b c\n", $output);
        fclose($connection);
    }

    public function testAProgramDiesWithWhoeverStartedIt(): void
    {
        $code = 'require $argv[1]; $program = proc_open($argv[2]::of(2, ["sleep", "600"]), [], $pipes);'
            . ' echo proc_get_status($program)["pid"], "\n"; sleep(600);';
        $autoload = dirname(__DIR__, 2) . '/autoload.php';
        $parent = new Started([PHP_BINARY, '-r', $code, $autoload, Program::class]);
        $parent->waitUntil(static fn (): bool => str_ends_with($parent->log(), "\n"), 'the program to be started');
        $child = (int) $parent->log();
        $arguments = static fn (): string => (string) @file_get_contents("/proc/$child/cmdline");
        Started::wait(static fn (): bool => $arguments() === "sleep\x00600\x00", 'the program to be itself');
        $parent->kill();
        Started::wait(static fn (): bool => $arguments() === '', 'the program to be killed');
        $this->addToAssertionCount(1);
    }

    /** @dataProvider helpers */
    public function testAProgramOfTheWorkersIsOfNoUseByHand(string $name): void
    {
        $process = proc_open(
            [PHP_BINARY, dirname(__DIR__, 2) . "/bin/$name"],
            [['file', '/dev/null', 'r'], ['pipe', 'w'], ['pipe', 'w']],
            $pipes,
        );
        self::assertSame("$name is started by a worker: see consumer --help\n", stream_get_contents($pipes[2]));
        self::assertSame(78, proc_close($process));
    }

    public static function helpers(): array
    {
        return [['consumer-child'], ['consumer-sentry']];
    }

    /** @param list<string> $command */
    private function output(array $command): string
    {
        $process = proc_open($command, [1 => ['pipe', 'w']], $pipes);
        $output = (string) stream_get_contents($pipes[1]);
        proc_close($process);
        return $output;
    }
}
