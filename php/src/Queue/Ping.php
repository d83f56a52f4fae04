<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * The question whether a worker of a host, on a release, takes from its queue and answers.
 *
 * It lies in `<queue>_ping_<host>`, and the answer goes to `<queue>_ping_<host>_answer` on the same server. The schemas
 * `ping-v1.json` and `ping-answer-v1.json` are the source.
 */
final class Ping
{
    /** Longest ping, in bytes; a longer item is none. */
    public const MAX_BYTES = 4096;

    private const UUID = '/\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z/';
    private const DEPLOY = '/\A[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}\z/';

    private function __construct(public readonly string $id, public readonly ?string $deploy)
    {
    }

    /** Returns the ping in `$body`, null when it is none. */
    public static function decode(string $body): ?self
    {
        $content = strlen($body) <= self::MAX_BYTES ? json_decode($body, true) : null;
        if (!is_array($content) || array_diff(array_keys($content), ['v', 'id', 'deploy']) !== []) {
            return null;
        }
        $version = $content['v'] ?? null;
        $id = $content['id'] ?? null;
        if (($version !== 1 && $version !== 1.0) || !is_string($id) || preg_match(self::UUID, $id) !== 1) {
            return null;
        }
        if (!array_key_exists('deploy', $content)) {
            return new self($id, null);
        }
        $deploy = $content['deploy'];
        return is_string($deploy) && preg_match(self::DEPLOY, $deploy) === 1 ? new self($id, $deploy) : null;
    }

    /** Returns the answer of a worker in the folder `$release`; `$pid` is its process id. */
    public function answered(string $release, int $pid, string $language, string $queue, string $host): string
    {
        $content = [
            'v' => 1,
            'id' => $this->id,
            'release' => $release,
            'pid' => $pid,
            'language' => $language,
            'queue' => $queue,
            'host' => $host,
        ];
        if ($this->deploy !== null) {
            $content['deploy'] = $this->deploy;
        }
        return json_encode(
            $content,
            JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES,
        );
    }
}
