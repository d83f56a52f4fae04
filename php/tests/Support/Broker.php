<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Support;

use KestrelStack\Queue\Server;

/** The embedded broker as a process, on a free port of loopback that stays the same over restarts. */
final class Broker
{
    private string $folder;
    private ?Program $program = null;
    private int $port = 0;

    /** @param array<string, mixed> $config */
    public function __construct(private readonly array $config = [])
    {
        $this->folder = Program::folder();
        mkdir("$this->folder/spool");
        $this->start();
    }

    public function __destruct()
    {
        $this->program?->kill();
        Program::remove($this->folder);
    }

    public function start(): void
    {
        $portFile = "$this->folder/ports.json";
        @unlink($portFile);
        $config = ['port' => $this->port, 'admin_port' => 0, 'queue_path' => "$this->folder/spool"] + $this->config;
        file_put_contents("$this->folder/broker.json", json_encode($config));
        // The broker needs Python's standard library only.
        $this->program = new Program(
            [
                'python3', '-m', 'kestrel_stack.broker',
                '--config', "$this->folder/broker.json",
                '--port-file', $portFile,
            ],
            ['PYTHONPATH' => dirname(__DIR__, 3) . '/src'],
        );
        $this->program->waitUntil(static fn (): bool => is_file($portFile), 'the broker to start');
        $this->port = json_decode((string) file_get_contents($portFile))->port;
    }

    public function kill(): void
    {
        $this->program?->kill();
    }

    public function server(): Server
    {
        return new Server('127.0.0.1', $this->port);
    }
}
