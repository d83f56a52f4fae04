<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Reporting failed jobs to Sentry, without a library: one event is one envelope, sent by HTTP.
 *
 * Source of the format: develop.sentry.dev, "Envelopes" and "Event Payloads"; accepted by Sentry and Bugsink. The DSN
 * holds a key: no message of this class names it.
 */
final class Sentry
{
    /** Seconds for connecting, and for each step of an exchange with Sentry. */
    public const TIMEOUT = 2.0;
    /** The newest lines of a job that go with its event, and the longest text of one, in bytes. */
    public const MAX_CRUMBS = 100;
    public const MAX_CRUMB_TEXT = 1024;

    private const CLIENT = 'kestrel-stack/1';
    private const DSN = '~\A(?<scheme>https?)://(?<key>[A-Za-z0-9]+)(?::[A-Za-z0-9]+)?@'
        . '(?<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?<port>[0-9]{1,5}))?'
        . '(?<prefix>(?:/[A-Za-z0-9.\_\~-]+)*)/(?<project>[A-Za-z0-9_-]+)/?\z~';

    private function __construct(
        private readonly string $server,
        private readonly string $path,
        #[\SensitiveParameter]
        private readonly string $key,
    ) {
    }

    /**
     * Return where the events of $dsn go.
     *
     * @throws \InvalidArgumentException without showing it
     */
    public static function at(
        #[\SensitiveParameter]
        string $dsn,
    ): self {
        $port = null;
        if (preg_match(self::DSN, trim($dsn), $match) === 1 && $match['port'] !== '') {
            $port = (int) $match['port'];
        }
        if ($match === [] || ($port !== null && ($port < 1 || $port > 65535))) {
            throw new \InvalidArgumentException(
                "The Sentry DSN is not like https://KEY@HOST/PROJECT; copy it from the project's settings.",
            );
        }
        $port ??= $match['scheme'] === 'https' ? 443 : 80;
        return new self(
            "{$match['scheme']}://{$match['host']}:$port",
            "{$match['prefix']}/api/{$match['project']}/envelope/",
            $match['key'],
        );
    }

    /**
     * Send one envelope. Return for how many seconds Sentry wants no other one after it has refused this.
     *
     * @throws \RuntimeException with one line, when it could not be sent
     */
    public function send(string $envelope, float $timeout = self::TIMEOUT, ?string &$refused = null): float
    {
        $headers = [
            'Content-Type: application/x-sentry-envelope',
            'User-Agent: ' . self::CLIENT,
            'X-Sentry-Auth: Sentry sentry_version=7, sentry_client=' . self::CLIENT . ", sentry_key={$this->key}",
            'Connection: close',
        ];
        $context = stream_context_create(['http' => [
            'method' => 'POST',
            'header' => $headers,
            'content' => $envelope,
            'timeout' => $timeout,
            'ignore_errors' => true,
            'follow_location' => 0,
            'protocol_version' => 1.1,
        ]]);
        $refused = null;
        error_clear_last();
        $stream = @fopen($this->server . $this->path, 'r', false, $context);
        if ($stream === false) {
            $reason = (string) preg_replace('/^.*(: |\) )/s', '', trim(error_get_last()['message'] ?? 'unknown'));
            if (preg_match('/timed? ?out|HTTP request failed!/i', $reason) === 1) {
                throw new \RuntimeException(sprintf('%s gave no answer in %g s.', $this->server, $timeout));
            }
            throw new \RuntimeException("{$this->server} is not reachable: $reason.");
        }
        $lines = stream_get_meta_data($stream)['wrapper_data'] ?? [];
        fclose($stream);
        $status = preg_match('~^HTTP/\S+ ([0-9]{3})~', (string) ($lines[0] ?? ''), $match) === 1 ? $match[1] : '?';
        if ($status === '200') {
            return 0.0;
        }
        $refused = "{$this->server} answered with status $status.";
        $wait = 0.0;
        foreach ($lines as $line) {
            $wait = preg_match('/^Retry-After: *([0-9]{1,5})\s*$/i', $line, $match) === 1 ? (float) $match[1] : $wait;
        }
        return $status === '429' ? max($wait, 60.0) : 0.0;
    }

    /**
     * Return an event as what is sent.
     *
     * @param array<string, mixed> $event
     */
    public static function envelope(array $event): string
    {
        $flags = JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR;
        $data = (string) json_encode($event, $flags);
        $head = json_encode(['event_id' => $event['event_id'], 'sent_at' => self::time()], $flags);
        $item = json_encode(['type' => 'event', 'length' => strlen($data)], $flags);
        return "$head\n$item\n$data\n";
    }

    /**
     * Return an event for an error of class $kind. The lines are the job's: Unix milliseconds, level, event, fields.
     *
     * @param array<string, mixed> $tags
     * @param list<array<string, mixed>> $frames
     * @param list<array{int, string, string, array<array-key, mixed>}> $lines
     * @return array<string, mixed>
     */
    public static function event(
        string $kind,
        string $message,
        string $level,
        array $tags,
        array $frames = [],
        array $lines = [],
        string $stack = '',
    ): array {
        $exception = ['type' => Text::clean($kind), 'value' => Text::clean($message)];
        if ($frames !== []) {
            $exception['stacktrace'] = ['frames' => $frames];
        }
        $job = $tags['job'] ?? null;
        $texts = array_map(strval(...), array_filter($tags, static fn (mixed $tag): bool => $tag !== null));
        return [
            'event_id' => bin2hex(random_bytes(16)),
            'timestamp' => self::time(),
            'platform' => 'php',
            'level' => $level,
            'logger' => 'kestrel_stack.consumer',
            'transaction' => $job,
            // Without a stack all jobs that take too long would be one error.
            'fingerprint' => $job === null ? ['{{ default }}'] : ['{{ default }}', $job],
            'exception' => ['values' => [$exception]],
            'tags' => (object) $texts,
            'breadcrumbs' => ['values' => array_map(self::crumb(...), array_slice($lines, -self::MAX_CRUMBS))],
            'extra' => (object) ($stack === '' ? [] : ['stack' => $stack]),
        ];
    }

    /**
     * Return the places of an error's stack, the innermost last.
     *
     * @return list<array<string, mixed>>
     */
    public static function frames(\Throwable $thrown): array
    {
        $frames = [];
        foreach (Stack::of($thrown) as [$file, $line, $function]) {
            $frames[] = [
                'filename' => $file,
                'abs_path' => $file,
                'function' => $function,
                'lineno' => $line,
                'in_app' => !str_contains($file, '/vendor/') && $file !== '[internal]',
            ];
        }
        return array_reverse($frames);
    }

    /**
     * @param array{int, string, string, array<array-key, mixed>} $line
     * @return array<string, mixed>
     */
    private static function crumb(array $line): array
    {
        [$at, $level, $event, $fields] = $line;
        $data = [];
        foreach ($fields as $name => $content) {
            $data[(string) $name] = Text::head(Text::of($content), self::MAX_CRUMB_TEXT);
        }
        return [
            'timestamp' => self::time($at),
            'category' => 'job',
            'level' => $level,
            'message' => Text::head($event, self::MAX_CRUMB_TEXT),
            'data' => (object) $data,
        ];
    }

    private static function time(?int $at = null): string
    {
        return Line::stamp($at);
    }
}
