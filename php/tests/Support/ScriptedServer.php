<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Support;

use KestrelStack\Queue\Server;

/**
 * A stand-in that answers what a script says, for what no Kestrel does when it is asked to: nonsense, silence, half of
 * an answer, a connection that ends.
 */
final class ScriptedServer
{
    private readonly Program $program;
    public readonly Server $server;

    /**
     * One list of answers for each connection in turn. An answer is sent for one request; null answers nothing until
     * the client has gone; a list is sent piece by piece with 50 ms in between. After the last the connection is
     * closed.
     *
     * @param list<list<string|null|list<string>>> $connections
     */
    public function __construct(array $connections)
    {
        $script = base64_encode(serialize($connections));
        $this->program = new Program([PHP_BINARY, __DIR__ . '/scripted_server.php', $script]);
        $this->program->waitUntil(fn (): bool => str_contains($this->program->log(), "\n"), 'the port');
        $this->server = new Server('127.0.0.1', (int) explode("\n", $this->program->log())[0]);
    }

    /** @return list<string> the first line of every request so far */
    public function requests(): array
    {
        return array_slice(explode("\n", trim($this->program->log())), 1);
    }
}
