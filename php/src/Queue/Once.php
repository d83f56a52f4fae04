<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\Busy;
use KestrelStack\Queue\Errors\StoreFailed;

/**
 * Doing something once, although a job may be delivered twice.
 *
 *     $once = new Once(new PdoStore($pdo));
 *     $once->run("post-upload-{$data['upload']}", 7 * 86400, fn () => $api->post($data['upload']));
 *
 * What this can promise, and what not: of two workers with the same key, one runs the function, and the other throws
 * Busy (so that its job is tried again later) or, after the first has finished, does nothing. A worker that dies
 * between the act and its mark leaves a claim behind; when its lease is over, the function runs again. No helper can do
 * better from outside: only the one who acts, such as an API that takes an idempotency key, can make the act and its
 * mark one.
 */
final class Once
{
    /** Seconds that a claim holds; let it be the queue's job_timeout, after which no worker is at it any more. */
    public const LEASE = 60.0;
    public const MAX_KEY = 200;

    public function __construct(private readonly OnceStore $store, private readonly float $lease = self::LEASE)
    {
        if (!($lease > 0)) {
            throw new \ValueError("The lease must be a number of seconds above 0, not $lease.");
        }
    }

    /**
     * Calls `$function` unless it has succeeded for `$key` within the last `$ttl` seconds; says whether it was called.
     *
     * What the function throws comes through: then it counts as not done, and may be tried again at once.
     *
     * @throws Busy while another worker is at it
     * @throws StoreFailed when the store does not answer
     */
    public function run(string $key, float $ttl, callable $function): bool
    {
        $length = Text::isUtf8($key) ? preg_match_all('/./su', $key) : 0;
        if ($length < 1 || $length > self::MAX_KEY) {
            $shown = Text::quote($key);
            throw new \ValueError('The key must be a text of 1 to ' . self::MAX_KEY . " characters, not $shown.");
        }
        if (!($ttl > 0)) {
            throw new \ValueError("The ttl must be a number of seconds above 0, not $ttl.");
        }
        $token = bin2hex(random_bytes(16));
        if (!$this->store->claim($key, $token, $this->lease)) {
            return false;
        }
        try {
            $function();
        } catch (\Throwable $error) {
            try {
                $this->store->release($key, $token);
            } catch (StoreFailed) {
                // What the function threw matters more than a claim that ends with its lease anyway.
            }
            throw $error;
        }
        $this->store->mark($key, $token, $ttl);
        return true;
    }
}
