<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidEnvelope;
use KestrelStack\Queue\Errors\InvalidJob;

/**
 * One job as it travels; the fields are those of the contract (version 1), times are Unix milliseconds.
 *
 * `data` is an array by names. What was read from a queue is written back with the very same data, although an empty
 * object reads as an empty array, and a whole number beyond 64 bits as a text.
 */
final class Envelope
{
    public const VERSION = 1;
    /** Largest time in milliseconds, and the largest whole number that every JSON parser keeps. */
    public const MAX_TIME = 2 ** 53 - 1;
    public const MAX_ATTEMPT = 1_000_000;
    public const MAX_NAME = 100;

    private const REQUIRED = ['v', 'id', 'job', 'tenant', 'data', 'attempt', 'enqueued_at'];
    private const OPTIONAL = ['due_at', 'trace'];
    private const UUID = '/\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z/';
    private const JOB = '/\A[A-Za-z][A-Za-z0-9_]*\z/';
    private const TENANT = '/\A[A-Za-z0-9][A-Za-z0-9._-]*\z/';

    public readonly string $id;
    public readonly int $enqueuedAt;
    /** What the envelope was read from. */
    private ?string $body = null;

    /**
     * @param array<mixed>|\stdClass $data an array with names as keys, or an object for names that are numbers
     * @param ?array<string> $trace
     */
    public function __construct(
        public readonly string $job,
        public readonly string $tenant,
        public readonly array|\stdClass $data = [],
        ?string $id = null,
        public readonly int $attempt = 1,
        ?int $enqueuedAt = null,
        public readonly ?int $dueAt = null,
        public readonly ?array $trace = null,
    ) {
        $this->id = $id ?? self::uuid();
        $this->enqueuedAt = $enqueuedAt ?? Clock::unixMs();
    }

    /** Returns the envelope as bytes. @throws InvalidJob when it breaks the contract or JSON */
    public function encode(): string
    {
        if ($this->body !== null) {
            return $this->body;
        }
        $content = [
            'v' => self::VERSION,
            'id' => $this->id,
            'job' => $this->job,
            'tenant' => $this->tenant,
            'data' => $this->data,
            'attempt' => $this->attempt,
            'enqueued_at' => $this->enqueuedAt,
        ];
        if ($this->dueAt !== null) {
            $content['due_at'] = $this->dueAt;
        }
        if ($this->trace !== null) {
            $content['trace'] = (object) $this->trace;
        }
        if ($this->data === []) {
            $content['data'] = new \stdClass();
        }
        $found = self::faults($content);
        if ($found !== []) {
            throw new InvalidJob(implode(' ', $found));
        }
        self::refuseWhatJsonChanges($content['trace'] ?? null, 'trace', 2);
        self::refuseWhatJsonChanges($this->data, 'data', 2);
        return json_encode($content, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES
            | JSON_UNESCAPED_LINE_TERMINATORS | JSON_PRESERVE_ZERO_FRACTION);
    }

    /** Returns the envelope in `$body`. @throws InvalidEnvelope with a sentence for every fault */
    public static function decode(string $body): self
    {
        $content = Json::decode($body, InvalidEnvelope::class);
        $found = self::faults(self::withObjects($content, $body, ['v', 'data', 'trace']));
        if ($found !== []) {
            throw new InvalidEnvelope($found);
        }
        $envelope = new self(
            job: $content['job'],
            tenant: $content['tenant'],
            data: preg_match('/[0-9]{19}/', $body) ? Json::exact(Json::members($body)['data']) : $content['data'],
            id: $content['id'],
            attempt: (int) $content['attempt'],
            enqueuedAt: (int) $content['enqueued_at'],
            dueAt: isset($content['due_at']) ? (int) $content['due_at'] : null,
            trace: $content['trace'] ?? null,
        );
        $envelope->body = $body;
        return $envelope;
    }

    /**
     * Returns the envelope in `$body` for another try at `$dueAt` (Unix ms): `attempt` is one higher.
     *
     * Everything else keeps its very bytes, so that no number of the data is rounded on its way through a language that
     * does not have it.
     *
     * @throws InvalidEnvelope as `decode` does, also when `attempt` cannot go any higher
     */
    public static function again(string $body, int $dueAt): string
    {
        $envelope = self::decode($body);
        if ($envelope->attempt >= self::MAX_ATTEMPT) {
            throw new InvalidEnvelope([sprintf("The field 'attempt' is at its limit of %d.", self::MAX_ATTEMPT)]);
        }
        return self::with($body, $envelope->attempt + 1, $dueAt);
    }

    /** Returns the envelope in `$body` for a new first try, due now. @throws InvalidEnvelope as `again` */
    public static function afresh(string $body): string
    {
        self::decode($body);
        return self::with($body, 1, Clock::unixMs());
    }

    /** Says whether `$name` may name a job. */
    public static function isJobName(mixed $name): bool
    {
        return self::matches(self::JOB, $name, self::MAX_NAME);
    }

    /** Says whether `$id` is a job's id: a UUID in lower case. */
    public static function isId(mixed $id): bool
    {
        return self::matches(self::UUID, $id);
    }

    /** Returns a random UUID (RFC 4122, version 4). */
    public static function uuid(): string
    {
        $bytes = random_bytes(16);
        $bytes[6] = chr(ord($bytes[6]) & 0x0f | 0x40);
        $bytes[8] = chr(ord($bytes[8]) & 0x3f | 0x80);
        return vsprintf('%s%s-%s-%s-%s-%s%s%s', str_split(bin2hex($bytes), 4));
    }

    /**
     * Returns a sentence for everything in which `$content` breaks the contract of envelopes. An empty array counts as
     * a list here, so that an object which may be empty has to be an object.
     *
     * @return list<string>
     */
    public static function faults(mixed $content): array
    {
        if (!self::isObject($content)) {
            return ['The envelope is ' . Text::kind($content) . ', not an object.'];
        }
        $content = (array) $content;
        if (array_key_exists('v', $content) && !self::isOne($content['v'])) {
            // Another version may mean anything by its other fields, so nothing else is said about them.
            return ["The field 'v' is " . Text::show($content['v']) . '; this worker knows version 1.'];
        }
        $found = self::keyFaults($content, self::REQUIRED, self::OPTIONAL);
        $has = static fn (string $key): bool => array_key_exists($key, $content);
        if ($has('id') && !self::isId($content['id'])) {
            $found[] = "The field 'id' is not a UUID in lower case.";
        }
        if ($has('job') && !self::isJobName($content['job'])) {
            $found[] = "The field 'job' is not a job name: a letter, then letters, digits and '_', "
                . 'at most ' . self::MAX_NAME . ' characters.';
        }
        if ($has('tenant') && !self::matches(self::TENANT, $content['tenant'], self::MAX_NAME)) {
            $found[] = "The field 'tenant' is not a tenant name: a letter or digit, then letters, digits, '.', '_' and "
                . "'-', at most " . self::MAX_NAME . ' characters.';
        }
        if ($has('data') && !self::isObject($content['data'])) {
            $found[] = "The field 'data' is " . Text::kind($content['data']) . ', not an object.';
        }
        if ($has('attempt') && !self::isWhole($content['attempt'], 1, self::MAX_ATTEMPT)) {
            $found[] = "The field 'attempt' is not a whole number from 1 to " . self::MAX_ATTEMPT . '.';
        }
        foreach (['enqueued_at', 'due_at'] as $key) {
            if ($has($key) && !self::isWhole($content[$key], 0, self::MAX_TIME)) {
                $found[] = "The field '$key' is not a time in milliseconds since 1970.";
            }
        }
        if ($has('trace') && !self::isObjectOfTexts($content['trace'])) {
            $found[] = "The field 'trace' is not an object of texts.";
        }
        return $found;
    }

    /**
     * Returns sentences for missing and unknown fields.
     *
     * @internal
     * @param array<mixed> $content
     * @param list<string> $required
     * @param list<string> $optional
     * @return list<string>
     */
    public static function keyFaults(array $content, array $required, array $optional): array
    {
        $found = [];
        foreach ($required as $key) {
            if (!array_key_exists($key, $content)) {
                $found[] = "The field '$key' is missing.";
            }
        }
        $unknown = array_diff(array_map(strval(...), array_keys($content)), $required, $optional);
        sort($unknown, SORT_STRING);
        foreach ($unknown as $key) {
            $found[] = 'The field ' . Text::show($key) . ' is unknown.';
        }
        return $found;
    }

    /**
     * Returns what was decoded from `$body` with objects where an array could be either: itself, and the fields
     * `$keys`.
     *
     * @internal
     * @param list<string> $keys
     */
    public static function withObjects(mixed $content, string $body, array $keys): mixed
    {
        if (!is_array($content) || (array_is_list($content) && !Json::isObject($body))) {
            return $content;
        }
        $members = null;
        foreach ($keys as $key) {
            $value = $content[$key] ?? null;
            if (is_array($value) && array_is_list($value)) {
                $members ??= Json::members($body);
                $content[$key] = Json::isObject($members[$key]) ? (object) $value : $value;
            }
        }
        return array_is_list($content) ? (object) $content : $content;
    }

    /** @internal Compares as JSON does: 1.0 is 1, true is not. */
    public static function isOne(mixed $value): bool
    {
        return $value === 1 || $value === 1.0;
    }

    /** @internal */
    public static function isWhole(mixed $value, int $low, int $high): bool
    {
        return (is_int($value) || (is_float($value) && floor($value) === $value)) && $low <= $value && $value <= $high;
    }

    /** @internal */
    public static function isObject(mixed $value): bool
    {
        return $value instanceof \stdClass || (is_array($value) && !array_is_list($value));
    }

    private static function matches(string $pattern, mixed $value, int $longest = PHP_INT_MAX): bool
    {
        return is_string($value) && strlen($value) <= $longest && preg_match($pattern, $value) === 1;
    }

    private static function isObjectOfTexts(mixed $value): bool
    {
        if (!self::isObject($value)) {
            return false;
        }
        foreach ((array) $value as $item) {
            if (!is_string($item)) {
                return false;
            }
        }
        return true;
    }

    private static function with(string $body, int $attempt, int $dueAt): string
    {
        if ($dueAt < 0 || $dueAt > self::MAX_TIME) {
            throw new \ValueError("due_at cannot be $dueAt.");
        }
        $members = ['attempt' => (string) $attempt, 'due_at' => (string) $dueAt] + Json::members($body);
        $parts = [];
        foreach ([...self::REQUIRED, ...self::OPTIONAL] as $key) {
            if (isset($members[$key])) {
                $parts[] = "\"$key\":$members[$key]";
            }
        }
        return '{' . implode(',', $parts) . '}';
    }

    /** Throws InvalidJob for data that would arrive differently, or not at all. */
    private static function refuseWhatJsonChanges(mixed $value, string $where, int $depth): void
    {
        if (is_string($value)) {
            if (!Text::isUtf8($value)) {
                throw new InvalidJob(Text::clean($where) . ' holds text that is not UTF-8; encode bytes with base64.');
            }
        } elseif (is_float($value)) {
            if (!is_finite($value)) {
                $shown = var_export($value, true);
                throw new InvalidJob(Text::clean($where) . " is $shown, which JSON cannot hold.");
            }
        } elseif (is_array($value) || $value instanceof \stdClass) {
            if ($depth > Json::MAX_DEPTH) {
                throw new InvalidJob(sprintf("The job's data is nested more than %d levels deep.", Json::MAX_DEPTH));
            }
            $isList = is_array($value) && array_is_list($value);
            $isObject = !is_array($value);
            foreach ((array) $value as $key => $item) {
                if (is_string($key)) {
                    self::refuseWhatJsonChanges($key, "a key of $where", $depth);
                    if ($isObject && $key !== '' && $key[0] === "\0") {
                        // json_encode takes it for a hidden property and leaves it out.
                        throw new InvalidJob(Text::clean($where) . ' has a key that begins with NUL; use an array.');
                    }
                }
                if (!is_scalar($item) || is_string($item) || is_float($item)) {
                    self::refuseWhatJsonChanges($item, $isList ? "{$where}[$key]" : "$where.$key", $depth + 1);
                }
            }
        } elseif ($value !== null && !is_scalar($value)) {
            throw new InvalidJob(sprintf(
                '%s is a %s, which JSON cannot hold; use text, numbers, arrays, stdClass.',
                Text::clean($where),
                get_debug_type($value),
            ));
        }
    }
}
