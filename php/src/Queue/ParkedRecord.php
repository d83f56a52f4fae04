<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidParkedRecord;

/** One item that no worker could do: why, and the item's own bytes. `parkedAt` is Unix milliseconds. */
final class ParkedRecord
{
    private const KEYS = ['v', 'parked_at', 'reason', 'error', 'sentry_event', 'attempts', 'body_b64'];
    private const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
    private const ERROR_KEYS = ['class', 'message', 'stack'];

    public readonly int $parkedAt;

    /** @param ?array{class: string, message: string, stack: string} $error */
    public function __construct(
        public readonly string $reason,
        public readonly string $body,
        public readonly int $attempts = 0,
        public readonly ?array $error = null,
        public readonly ?string $sentryEvent = null,
        ?int $parkedAt = null,
    ) {
        $this->parkedAt = $parkedAt ?? Clock::unixMs();
    }

    /** Returns the record as bytes; text of a job that is not UTF-8 is escaped, so this never fails. */
    public function encode(): string
    {
        $error = null;
        foreach ($this->error === null ? [] : self::ERROR_KEYS as $key) {
            $error[$key] = Text::clean($this->error[$key]);
        }
        return json_encode(
            [
                'v' => Envelope::VERSION,
                'parked_at' => $this->parkedAt,
                'reason' => Text::clean($this->reason),
                'error' => $error,
                'sentry_event' => $this->sentryEvent,
                'attempts' => $this->attempts,
                'body_b64' => base64_encode($this->body),
            ],
            JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_LINE_TERMINATORS,
        );
    }

    /** Returns the record in `$record`. @throws InvalidParkedRecord with a sentence for every fault */
    public static function decode(string $record): self
    {
        $content = Json::decode($record, InvalidParkedRecord::class);
        $found = self::faults(Envelope::withObjects($content, $record, []));
        if ($found !== []) {
            throw new InvalidParkedRecord($found);
        }
        return new self(
            reason: $content['reason'],
            body: (string) base64_decode($content['body_b64'], true),
            attempts: (int) $content['attempts'],
            error: $content['error'],
            sentryEvent: $content['sentry_event'],
            parkedAt: (int) $content['parked_at'],
        );
    }

    /**
     * Returns a sentence for everything in which `$content` breaks the contract of parked records.
     *
     * @return list<string>
     */
    public static function faults(mixed $content): array
    {
        if (!Envelope::isObject($content)) {
            return ['The parked record is ' . Text::kind($content) . ', not an object.'];
        }
        $content = (array) $content;
        if (array_key_exists('v', $content) && !Envelope::isOne($content['v'])) {
            return ["The field 'v' is " . Text::show($content['v']) . '; only version 1 is known.'];
        }
        $found = Envelope::keyFaults($content, self::KEYS, []);
        $has = static fn (string $key): bool => array_key_exists($key, $content);
        if ($has('parked_at') && !Envelope::isWhole($content['parked_at'], 0, Envelope::MAX_TIME)) {
            $found[] = "The field 'parked_at' is not a time in milliseconds since 1970.";
        }
        if ($has('reason') && (!is_string($content['reason']) || $content['reason'] === '')) {
            $found[] = "The field 'reason' is not a text, or empty.";
        }
        if ($has('error') && !self::isError($content['error'])) {
            $found[] = "The field 'error' is neither null nor an object of the texts class, message and stack.";
        }
        if ($has('sentry_event') && $content['sentry_event'] !== null && !is_string($content['sentry_event'])) {
            $found[] = "The field 'sentry_event' is neither null nor a text.";
        }
        if ($has('attempts') && !Envelope::isWhole($content['attempts'], 0, Envelope::MAX_ATTEMPT)) {
            $found[] = "The field 'attempts' is not a whole number from 0 to " . Envelope::MAX_ATTEMPT . '.';
        }
        if ($has('body_b64') && !self::isBase64($content['body_b64'])) {
            $found[] = "The field 'body_b64' is not base64.";
        }
        return $found;
    }

    private static function isError(mixed $value): bool
    {
        if ($value === null) {
            return true;
        }
        return is_array($value)
            && count($value) === count(self::ERROR_KEYS)
            && array_diff(self::ERROR_KEYS, array_keys($value)) === []
            && array_filter($value, is_string(...)) === $value
            && $value['class'] !== '';
    }

    private static function isBase64(mixed $value): bool
    {
        if (!is_string($value) || strlen($value) % 4 !== 0) {
            return false;
        }
        $letters = rtrim($value, '=');
        return strlen($value) - strlen($letters) <= 2
            && strspn($letters, self::BASE64) === strlen($letters);
    }
}
