<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Ping;

/** Answers pings for one worker: `$queue` as the settings file calls it, `$release` is the folder it runs in. */
final class Responder
{
    public function __construct(
        private readonly string $queue,
        public readonly string $host,
        private readonly string $release,
        private readonly int $pid,
        private readonly Log $log,
    ) {
    }

    /** Returns the answer to the ping in `$body`, null when that is no ping. */
    public function answer(string $body): ?string
    {
        $ping = Ping::decode($body);
        if ($ping === null) {
            $this->log->debug('not a ping, dropped', ['bytes' => strlen($body)]);
            return null;
        }
        // Below info: whoever may write to the queue could fill the log with them.
        $this->log->debug('ping answered', ['id' => $ping->id, 'deploy' => $ping->deploy]);
        return $ping->answered(
            release: $this->release,
            pid: $this->pid,
            language: 'php',
            queue: $this->queue,
            host: $this->host,
        );
    }
}
