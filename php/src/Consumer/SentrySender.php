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
    public static function main(): int
    {
        posix_setpgid(0, 0);
        $stream = fopen('php://fd/0', 'r+');
        if ($stream === false) {
            return 1;
        }
        $pipe = new Pipe($stream);
        $sentry = null;
        $notBefore = 0.0;
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
                try {
                    $notBefore = hrtime(true) / 1e9 + $sentry->send($body, refused: $error);
                } catch (\RuntimeException $exc) {
                    $error = $exc->getMessage();
                }
            }
            if (!$pipe->send(['error' => $error])) {
                return 0;
            }
        }
        return 0;
    }
}
