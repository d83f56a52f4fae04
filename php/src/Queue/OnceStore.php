<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\Busy;
use KestrelStack\Queue\Errors\StoreFailed;

/** Where the claims and marks of Once are kept; every worker that shares the keys must use the same store. */
interface OnceStore
{
    /** Claims `$key` for `$lease` seconds; false when it is done. @throws Busy|StoreFailed */
    public function claim(string $key, string $token, float $lease): bool;

    /** Notes for `$ttl` seconds that `$key` is done, unless another has claimed it meanwhile. @throws StoreFailed */
    public function mark(string $key, string $token, float $ttl): void;

    /** Gives a claim back. @throws StoreFailed */
    public function release(string $key, string $token): void;
}
