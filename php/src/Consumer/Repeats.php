<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Which of many events of one error are sent: the first ones, then one each so many seconds.
 *
 * The others would tell nothing new, and use up what the server takes for one project, which other errors need.
 */
final class Repeats
{
    /** Of one error a worker sends so many events at once, then one in so many seconds. */
    public const BURST = 10;
    public const EVERY = 30.0;
    /** So many different errors are told apart; then the one that was not seen for longest is forgotten. */
    public const MAX_ERRORS = 500;

    private const NUMBERS = '~\b(?=[0-9a-fA-F-]*[0-9])[0-9a-fA-F][0-9a-fA-F-]{5,}\b|[0-9]+~';

    /** @var array<string, array{left: float, at: float, held: int, id: ?string}> */
    private array $seen = [];

    public function __construct(private readonly int $burst = self::BURST, private readonly float $every = self::EVERY)
    {
    }

    /** Return what makes an error the same as another one; numbers and ids in its text do not matter. */
    public static function key(string $kind, string $message, string $level, ?string $job): string
    {
        $line = explode("\n", Text::head($message, Sentry::MAX_CRUMB_TEXT), 2)[0];
        return implode("\0", [$kind, preg_replace(self::NUMBERS, '#', $line), $level, $job ?? '']);
    }

    /** Return how many were held back since the last that was sent; null when this one is, too. */
    public function count(string $key): ?int
    {
        $now = hrtime(true) / 1e9;
        $seen = $this->of($key, $now);
        $seen['left'] = min((float) $this->burst, $seen['left'] + ($now - $seen['at']) / $this->every);
        $seen['at'] = $now;
        $held = null;
        if ($seen['left'] < 1) {
            $seen['held']++;
        } else {
            $seen['left']--;
            [$held, $seen['held']] = [$seen['held'], 0];
        }
        $this->seen[$key] = $seen;
        return $held;
    }

    /** Note errors that somebody else has held back, or that were not sent after all. */
    public function hold(string $key, int $count = 1): void
    {
        $seen = $this->of($key, hrtime(true) / 1e9);
        $seen['held'] += $count;
        $this->seen[$key] = $seen;
    }

    /** @return array{left: float, at: float, held: int, id: ?string} what is known of an error, now the newest one */
    private function of(string $key, float $now): array
    {
        $seen = $this->seen[$key] ?? ['left' => (float) $this->burst, 'at' => $now, 'held' => 0, 'id' => null];
        unset($this->seen[$key]);
        $this->seen[$key] = $seen;
        if (count($this->seen) > self::MAX_ERRORS) {
            unset($this->seen[array_key_first($this->seen)]);
        }
        return $seen;
    }

    /** Note the id of the event that was sent for an error. */
    public function sent(string $key, string $id): void
    {
        if (isset($this->seen[$key])) {
            $this->seen[$key]['id'] = $id;
        }
    }

    /** Forget the id of an event that could not be sent after all: nobody is to look for it. */
    public function lost(string $key, string $id): void
    {
        if (($this->seen[$key]['id'] ?? null) === $id) {
            $this->seen[$key]['id'] = null;
        }
    }

    /** Return the id of the last event that was sent for an error. */
    public function last(string $key): ?string
    {
        return $this->seen[$key]['id'] ?? null;
    }
}
