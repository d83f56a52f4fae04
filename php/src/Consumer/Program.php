<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** The command of a process that a worker starts. */
final class Program
{
    private const BASH = '/bin/bash';
    private const SETPRIV = '/usr/bin/setpriv';

    /**
     * Return $command so that it gets none of the worker's connections, and so that the kernel kills it when the worker
     * dies, however that happens.
     *
     * PHP passes every connection on to each program. One that it shares with a child would not be closed, and what is
     * reserved on it not be given back, before the child ends as well; and the child could write to it. $highest is the
     * last descriptor that is meant to be passed on.
     *
     * @param list<string> $command
     * @return list<string>
     */
    public static function of(int $highest, array $command): array
    {
        if (is_executable(self::SETPRIV)) {
            $command = [self::SETPRIV, '--pdeathsig', 'KILL', '--', ...$command];
        }
        if (is_executable(self::BASH) && is_dir('/proc/self/fd')) {
            $close = 'for file in /proc/self/fd/*; do number=${file##*/}; '
                . '(( number > $1 )) && eval "exec $number>&-"; done; shift; exec "$@"';
            // Privileged: without what BASH_ENV says.
            $command = [self::BASH, '-p', '-c', $close, 'consumer', (string) $highest, ...$command];
        }
        return $command;
    }
}
