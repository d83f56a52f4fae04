<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Support;

use KestrelStack\Queue\Server;

/** A real beanstalkd on a free port of loopback, its journal in a folder. */
final class Beanstalkd
{
    private readonly string $folder;
    private readonly int $port;
    private ?Program $program = null;

    public function __construct()
    {
        $this->folder = Program::folder();
        $free = stream_socket_server('tcp://127.0.0.1:0');
        $this->port = (int) explode(':', (string) stream_socket_get_name($free, false))[1];
        fclose($free);
        $this->start();
    }

    public function __destruct()
    {
        $this->program?->kill();
        Program::remove($this->folder);
    }

    public function start(): void
    {
        $this->program = new Program(
            [self::path(), '-l', '127.0.0.1', '-p', (string) $this->port, '-b', $this->folder, '-f', '0'],
        );
        $this->program->waitUntil(
            fn (): bool => is_resource(@stream_socket_client("tcp://127.0.0.1:$this->port", timeout: 1)),
            'beanstalkd to answer',
        );
    }

    public function kill(): void
    {
        $this->program?->kill();
    }

    public function server(): Server
    {
        return new Server('127.0.0.1', $this->port);
    }

    /** Found as the Python tests find it: on PATH, or Debian's package unpacked, never installed. */
    private static function path(): string
    {
        static $path = null;
        if ($path === null) {
            $root = dirname(__DIR__, 3);
            $found = shell_exec(
                'PYTHONPATH=' . escapeshellarg("$root/tests") . ' python3 -c '
                . escapeshellarg('from support.beanstalkd import program; print(program())') . ' 2>&1',
            );
            $lines = explode("\n", trim((string) $found));
            $path = end($lines);
            if (!is_executable($path)) {
                throw new \RuntimeException("there is no beanstalkd: $path");
            }
        }
        return $path;
    }
}
