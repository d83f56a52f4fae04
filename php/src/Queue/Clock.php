<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/** The two clocks: one for distances, which is never set back, and one for dates. */
final class Clock
{
    /** Returns seconds since some moment. */
    public static function now(): float
    {
        return hrtime(true) / 1e9;
    }

    /** Returns the time as Unix milliseconds. */
    public static function unixMs(): int
    {
        return (int) floor(microtime(true) * 1000);
    }
}
