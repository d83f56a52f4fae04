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
    /** Seconds after which Sentry is asked again, however long a quiet it wished for. */
    public const MAX_QUIET = 3600.0;
    /** The key of an event's extra that says how many were held back; see Repeats. */
    public const REPEATED = 'the same error since the last event';

    /** Bytes of an event: Sentry and Bugsink refuse one of more than a megabyte. */
    public const MAX_EVENT = 900_000;

    private const MAX_SHORT_CRUMBS = 10;
    private const CLIENT = 'kestrel-stack/1';
    private const MAX_CAUSES = 10;
    /** So many lines before and after the one that a frame is at go with it, of so many bytes at most. */
    private const AROUND = 5;
    private const MAX_SOURCE_TEXT = 500;
    private const MAX_FILE = 2 * 1024 * 1024;
    private const TRACE = '~\A(?:[0-9a-f]{2}-)?(?<trace>[0-9a-f]{32})-(?<span>[0-9a-f]{16})(?![0-9a-f])~';
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
     * Send one envelope. Return for how many seconds Sentry wants no other one; $refused says why it did not take it.
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
        $headers = [];
        foreach (array_slice($lines, 1) as $line) {
            [$name, $content] = explode(':', $line, 2) + [1 => ''];
            $headers[strtolower($name)] = trim($content);
        }
        if ($status[0] !== '2') {
            $refused = "{$this->server} answered with status $status.";
        } elseif (str_starts_with(strtolower($headers['content-type'] ?? ''), 'text/html')) {
            $refused = "{$this->server} answered with a web page: that is not Sentry.";
        }
        return self::quietSeconds($status, $headers['x-sentry-rate-limits'] ?? null, $headers['retry-after'] ?? '');
    }

    /**
     * Return for how long an answer asks for no more errors.
     *
     * Source: develop.sentry.dev, "Rate Limiting". X-Sentry-Rate-Limits comes with any status, and then the other
     * header says nothing: groups of seconds, kinds of items (none: all of them), scope and reason.
     */
    public static function quietSeconds(string $status, ?string $limits, string $after): float
    {
        $wait = 0.0;
        if ($limits !== null) {
            foreach (explode(',', $limits) as $group) {
                [$seconds, $kinds] = explode(':', trim($group)) + [1 => ''];
                if (
                    preg_match('/^[0-9]{1,9}$/D', $seconds) === 1
                    && ($kinds === '' || in_array('error', explode(';', $kinds), true))
                ) {
                    $wait = max($wait, (float) $seconds);
                }
            }
        } elseif ($status === '429') {
            $wait = 60.0;
            if (preg_match('/^[0-9]{1,9}$/D', $after) === 1) {
                $wait = (float) $after;
            } elseif ($after !== '' && ($date = strtotime($after)) !== false) {
                $wait = (float) max(0, $date - time());
            }
        }
        return min($wait, self::MAX_QUIET);
    }

    /**
     * Return an event as what is sent.
     *
     * @param array<string, mixed> $event
     */
    public static function envelope(array $event): string
    {
        $data = self::fitted($event)[1];
        $head = self::json(['event_id' => $event['event_id'], 'sent_at' => self::time()]);
        $item = self::json(['type' => 'event', 'length' => strlen($data)]);
        return "$head\n$item\n$data\n";
    }

    /**
     * Return an event without what it can do without, as far as it is too large.
     *
     * @param array<string, mixed> $event
     * @return array<string, mixed>
     */
    public static function fitting(array $event): array
    {
        return self::fitted($event)[0];
    }

    /**
     * @param array<string, mixed> $event
     * @return array{array<string, mixed>, string} the event, and the same as JSON
     */
    private static function fitted(array $event): array
    {
        $text = self::json($event);
        foreach ([self::withoutDetails(...), self::withoutSource(...), self::withoutWhatLedToIt(...)] as $shorter) {
            if (strlen($text) <= self::MAX_EVENT) {
                break;
            }
            $event = $shorter($event);
            $text = self::json($event);
        }
        return [$event, $text];
    }

    /** @param array<string, mixed> $content */
    private static function json(array $content): string
    {
        $flags = JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR;
        return (string) json_encode($content, $flags);
    }

    /**
     * Leave out the lines' data, which is in their text as well, and what is installed.
     *
     * @param array<string, mixed> $event
     * @return array<string, mixed>
     */
    private static function withoutDetails(array $event): array
    {
        unset($event['modules']);
        foreach (array_keys($event['breadcrumbs']['values'] ?? []) as $number) {
            unset($event['breadcrumbs']['values'][$number]['data']);
        }
        return $event;
    }

    /**
     * @param array<string, mixed> $event
     * @return array<string, mixed>
     */
    private static function withoutSource(array $event): array
    {
        $source = ['pre_context' => 1, 'context_line' => 1, 'post_context' => 1];
        foreach ($event['exception']['values'] ?? [] as $number => $error) {
            foreach ($error['stacktrace']['frames'] ?? [] as $place => $frame) {
                $short = array_diff_key($frame, $source);
                $event['exception']['values'][$number]['stacktrace']['frames'][$place] = $short;
            }
        }
        return $event;
    }

    /**
     * @param array<string, mixed> $event
     * @return array<string, mixed>
     */
    private static function withoutWhatLedToIt(array $event): array
    {
        $event['exception'] = ['values' => array_slice($event['exception']['values'] ?? [], -1)];
        $event['breadcrumbs'] = [
            'values' => array_slice($event['breadcrumbs']['values'] ?? [], -self::MAX_SHORT_CRUMBS),
        ];
        $event['extra'] = (object) array_intersect_key((array) ($event['extra'] ?? []), [self::REPEATED => 1]);
        return $event;
    }

    /**
     * Return an event for an error of class $kind. The lines are the job's: Unix milliseconds, level, event, fields;
     * the causes are the errors that led to this one, the first of them first.
     *
     * @param array<string, mixed> $tags
     * @param list<array<string, mixed>> $frames
     * @param list<array{int, string, string, array<array-key, mixed>}> $lines
     * @param array<string, array<string, mixed>> $contexts
     * @param list<array<string, mixed>> $causes
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
        array $contexts = [],
        array $causes = [],
    ): array {
        // Nobody has dealt with it: it ended the job.
        $exception = self::exception($kind, $message, $frames)
            + ['mechanism' => ['type' => 'kestrel_stack', 'handled' => false]];
        $job = $tags['job'] ?? null;
        $texts = array_map(strval(...), array_filter($tags, static fn (mixed $tag): bool => $tag !== null));
        return [
            'event_id' => bin2hex(random_bytes(16)),
            'timestamp' => self::time(),
            'platform' => 'php',
            'level' => $level,
            'logger' => 'kestrel_stack.consumer',
            // Sentry groups by the stack, or by the error's text where there is none; the same in two jobs is two.
            'fingerprint' => self::fingerprint($job),
            'exception' => ['values' => [...$causes, $exception]],
            'tags' => (object) $texts,
            'breadcrumbs' => ['values' => array_map(self::crumb(...), array_slice($lines, -self::MAX_CRUMBS))],
            'contexts' => $contexts + [
                'runtime' => ['name' => 'php', 'version' => PHP_VERSION],
                'os' => ['name' => PHP_OS_FAMILY, 'version' => php_uname('r')],
            ],
            'extra' => (object) ($stack === '' ? [] : ['stack' => $stack]),
            'sdk' => ['name' => 'kestrel_stack.php', 'version' => explode('/', self::CLIENT)[1]],
        ] + ($job === null ? [] : ['transaction' => $job]) + self::modules();
    }

    /**
     * Return what events of one issue have in common: what Sentry itself takes for that, and the job.
     *
     * @return list<string>
     */
    public static function fingerprint(?string $job): array
    {
        return $job === null ? ['{{ default }}'] : ['{{ default }}', $job];
    }

    /**
     * Return the errors that led to one, the first of them first.
     *
     * @return list<array<string, mixed>>
     */
    public static function causes(\Throwable $thrown): array
    {
        $causes = [];
        $at = $thrown->getPrevious();
        for (; $at !== null && count($causes) < self::MAX_CAUSES; $at = $at->getPrevious()) {
            $text = Text::head($at->getMessage(), Child::MAX_MESSAGE);
            $causes[] = self::exception(Text::className($at), $text, self::frames($at))
                + ['mechanism' => ['type' => 'chained', 'handled' => true]];
        }
        return array_reverse($causes);
    }

    /**
     * Return the trace that a job belongs to, from the tracing headers that it was enqueued with.
     *
     * @param ?array<string, string> $headers
     * @return ?array{trace_id: string, parent_span_id: string, span_id: string}
     */
    public static function trace(?array $headers): ?array
    {
        foreach ($headers ?? [] as $name => $content) {
            if (
                in_array(strtolower((string) $name), ['traceparent', 'sentry-trace'], true)
                && preg_match(self::TRACE, $content, $match) === 1
            ) {
                $span = bin2hex(random_bytes(8));
                return ['trace_id' => $match['trace'], 'parent_span_id' => $match['span'], 'span_id' => $span];
            }
        }
        return null;
    }

    /** Return a line with its fields, as in the log: Bugsink shows a breadcrumb's text and not its data. */
    public static function crumbText(string $event, array $fields): string
    {
        foreach ($fields as $name => $content) {
            if (strlen($event) >= self::MAX_CRUMB_TEXT) {
                break;
            }
            // Cut first: to write out what is cut off after all takes longer than the rest.
            $short = is_string($content) ? substr($content, 0, self::MAX_CRUMB_TEXT) : $content;
            $event .= $content === null ? '' : " $name=" . Line::value($short);
        }
        return Text::head($event, self::MAX_CRUMB_TEXT);
    }

    /**
     * @param list<array<string, mixed>> $frames
     * @return array<string, mixed>
     */
    private static function exception(string $kind, string $message, array $frames): array
    {
        return ['type' => Text::clean($kind), 'value' => Text::clean($message)]
            + ($frames === [] ? [] : ['stacktrace' => ['frames' => $frames]]);
    }

    /** @return array{modules?: array<string, string>} what Composer has installed for the application */
    private static function modules(): array
    {
        $class = 'Composer\InstalledVersions';
        if (!class_exists($class, false)) {
            return [];
        }
        $found = [];
        foreach ($class::getInstalledPackages() as $name) {
            $found[$name] = (string) $class::getPrettyVersion($name);
        }
        return $found === [] ? [] : ['modules' => $found];
    }

    /**
     * Return line $number of a file, and some before and after it, as a frame has them.
     *
     * @return array<string, mixed>
     */
    private static function source(string $file, int $number): array
    {
        if ($number < 1 || !is_file($file) || filesize($file) > self::MAX_FILE) {
            return [];
        }
        $lines = array_map(
            static fn (string $line): string => Text::head($line, self::MAX_SOURCE_TEXT),
            array_slice(@file($file, FILE_IGNORE_NEW_LINES) ?: [], 0, $number + self::AROUND),
        );
        if ($number > count($lines)) {
            return [];
        }
        $first = max(0, $number - 1 - self::AROUND);
        return [
            'pre_context' => array_slice($lines, $first, $number - 1 - $first),
            'context_line' => $lines[$number - 1],
            'post_context' => array_slice($lines, $number),
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
        // What names the release is no part of where an error is.
        $folder = getcwd() . '/';
        foreach (Stack::of($thrown) as [$file, $line, $function]) {
            $frames[] = [
                'filename' => str_starts_with($file, $folder) ? substr($file, strlen($folder)) : $file,
                'abs_path' => $file,
                'function' => $function,
                'lineno' => $line,
                'in_app' => !str_contains($file, '/vendor/') && $file !== '[internal]',
            ] + self::source($file, $line);
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
            'message' => self::crumbText($event, $fields),
            'data' => (object) $data,
        ];
    }

    private static function time(?int $at = null): string
    {
        return Line::stamp($at);
    }
}
