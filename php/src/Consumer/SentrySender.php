<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * The process that talks to Sentry, so that nobody else waits for it.
 *
 * It is started by Reporter, reads messages from its stdin, a socket: the DSN once, then one envelope each; and answers
 * each of these with what became of it. It ends when its parent closes the socket.
 */
final class SentrySender
{
    /** Of a file's mode: which bits say its kind, and what they are for a socket (inode(7)). */
    private const KIND = 0170000;
    private const SOCKET = 0140000;
    /** Seconds that one exchange takes at most; then this process is ended, and started again by Reporter. */
    private const LONGEST = 10;

    public static function main(): int
    {
        $stream = @fopen('php://fd/0', 'r+');
        if ($stream === false || (fstat($stream)['mode'] & self::KIND) !== self::SOCKET) {
            fwrite(STDERR, "consumer-sentry is started by a worker: see consumer --help\n");
            return Cli::EX_CONFIG;
        }
        // What is sent to the worker's group, such as the signal of Ctrl-C, is for the worker to decide.
        posix_setpgid(0, 0);
        $pipe = new Pipe($stream);
        $sentry = null;
        $notBefore = 0.0;
        // The usual action of its signal: one look-up or answer that never ends must not be the last.
        pcntl_async_signals(false);
        while (($message = $pipe->receive()) !== null) {
            [$head, $body] = $message;
            if ($sentry === null) {
                $sentry = Sentry::at((string) ($head['dsn'] ?? ''));
                continue;
            }
            $error = null;
            if (hrtime(true) / 1e9 < $notBefore) {
                $error = 'Sentry wants no more for a while.';
            } else {
                pcntl_alarm(self::LONGEST);
                try {
                    $notBefore = hrtime(true) / 1e9 + $sentry->send($body, refused: $error);
                } catch (\RuntimeException $exc) {
                    $error = $exc->getMessage();
                }
                pcntl_alarm(0);
            }
            if (!$pipe->send(['error' => $error])) {
                return 0;
            }
        }
        return 0;
    }
}
