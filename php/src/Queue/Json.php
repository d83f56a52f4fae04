<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidEnvelope;

/**
 * JSON as the two contracts on the queues want it, which is stricter than PHP's own reading.
 *
 * @internal
 */
final class Json
{
    /** Deepest nesting of an item; every language's JSON parser has a limit, and they differ. */
    public const MAX_DEPTH = 128;

    /** The `depth` with which json_decode takes so many levels and no more (observed on PHP 8.2). */
    private const PHP_DEPTH = self::MAX_DEPTH + 1;
    private const SPACE = " \t\r\n";

    /**
     * Returns the value in `$body`, with objects as arrays.
     *
     * @param class-string<InvalidEnvelope> $error
     */
    public static function decode(string $body, string $error): mixed
    {
        if ($body === '') {
            throw new $error(['The item is empty.']);
        }
        $content = json_decode($body, true, self::PHP_DEPTH);
        $code = $content === null ? json_last_error() : JSON_ERROR_NONE;
        if ($code !== JSON_ERROR_NONE) {
            if (!Text::isUtf8($body)) {
                $at = Text::invalidAt($body);
                throw new $error([sprintf('The item is not UTF-8: byte %d is 0x%02x.', $at, ord($body[$at]))]);
            }
            if ($code === JSON_ERROR_DEPTH) {
                throw new $error([sprintf('The item is nested more than %d levels deep.', self::MAX_DEPTH)]);
            }
            throw new $error(['The item is not JSON: ' . lcfirst(json_last_error_msg()) . '.']);
        }
        // PHP reads 1e400 as infinite, which is no number of JSON. Looking at the text is cheap, and nearly always
        // enough.
        if (preg_match('/[eE]\+?[0-9]{3}|[0-9]{200}/', $body) && self::hasInfinite(self::exact($body))) {
            throw new $error(['The item is not JSON: a number is too large.']);
        }
        return $content;
    }

    /** Returns the value in `$json`, which is valid, with whole numbers beyond 64 bits as texts: no digit is lost. */
    public static function exact(string $json): mixed
    {
        return json_decode($json, true, self::PHP_DEPTH, JSON_BIGINT_AS_STRING);
    }

    /** Says whether the value in `$json`, which is valid, is an object. */
    public static function isObject(string $json): bool
    {
        return ltrim($json, self::SPACE)[0] === '{';
    }

    /**
     * Returns the members of the object in `$json`, which is valid: each value as it is written there. Of a key that
     * is there twice, the last.
     *
     * @return array<string>
     */
    public static function members(string $json): array
    {
        $found = [];
        $at = strspn($json, self::SPACE);
        $at++;
        while (true) {
            $at += strspn($json, self::SPACE, $at);
            if ($json[$at] === '}') {
                return $found;
            }
            $end = self::endOfText($json, $at);
            $key = (string) json_decode(substr($json, $at, $end - $at));
            $at = $end + strspn($json, self::SPACE, $end) + 1;
            $at += strspn($json, self::SPACE, $at);
            $end = self::endOfValue($json, $at);
            $found[$key] = substr($json, $at, $end - $at);
            $at = $end + strspn($json, self::SPACE, $end);
            if ($json[$at] === ',') {
                $at++;
            }
        }
    }

    private static function endOfValue(string $json, int $at): int
    {
        $depth = 0;
        do {
            switch ($json[$at]) {
                case '"':
                    $at = self::endOfText($json, $at);
                    break;
                case '{':
                case '[':
                    $depth++;
                    $at++;
                    break;
                case '}':
                case ']':
                    $depth--;
                    $at++;
                    break;
                default:
                    $at += strcspn($json, $depth > 0 ? '"{}[]' : ",}] \t\r\n", $at);
            }
        } while ($depth > 0);
        return $at;
    }

    private static function endOfText(string $json, int $at): int
    {
        $at++;
        while ($json[$at += strcspn($json, '"\\', $at)] === '\\') {
            $at += 2;
        }
        return $at + 1;
    }

    private static function hasInfinite(mixed $value): bool
    {
        if (is_array($value)) {
            foreach ($value as $item) {
                if (self::hasInfinite($item)) {
                    return true;
                }
            }
        }
        return is_float($value) && is_infinite($value);
    }
}
