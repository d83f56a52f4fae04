<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

/**
 * Values and bytes in sentences for people.
 *
 * @internal
 */
final class Text
{
    /** One character of UTF-8 beyond ASCII (RFC 3629). */
    private const BEYOND_ASCII = '[\xC2-\xDF][\x80-\xBF]|\xE0[\xA0-\xBF][\x80-\xBF]|[\xE1-\xEC\xEE\xEF][\x80-\xBF]{2}'
        . '|\xED[\x80-\x9F][\x80-\xBF]|\xF0[\x90-\xBF][\x80-\xBF]{2}|[\xF1-\xF3][\x80-\xBF]{3}'
        . '|\xF4[\x80-\x8F][\x80-\xBF]{2}';

    public static function isUtf8(string $text): bool
    {
        return preg_match('//u', $text) === 1;
    }

    /** Returns where the first byte stands that no UTF-8 has there; the text's length when there is none. */
    public static function invalidAt(string $text): int
    {
        // In steps, since PCRE limits what one match may take.
        $at = 0;
        while (preg_match('/\G(?:[\x00-\x7F]{1,1000}+|' . self::BEYOND_ASCII . '){1,100}+/', $text, $match, 0, $at)) {
            $at += strlen($match[0]);
        }
        return $at;
    }

    /** Returns `$text` with what is not UTF-8 written as `\xNN`. */
    public static function clean(string $text): string
    {
        if (self::isUtf8($text)) {
            return $text;
        }
        return (string) preg_replace_callback(
            '/(?:' . self::BEYOND_ASCII . ')(*SKIP)(*F)|[\x80-\xFF]/',
            static fn (array $match): string => sprintf('\x%02x', ord($match[0])),
            $text,
        );
    }

    /** Returns bytes in quotes, on one line and in ASCII. */
    public static function quote(string $text, int $longest = 100): string
    {
        $short = strlen($text) > $longest ? substr($text, 0, $longest) : $text;
        $shown = (string) preg_replace_callback(
            '/[^\x20-\x7E]/',
            static fn (array $match): string => match ($match[0]) {
                "\n" => '\n',
                "\r" => '\r',
                "\t" => '\t',
                default => sprintf('\x%02x', ord($match[0])),
            },
            $short,
        );
        return "'" . $shown . ($short === $text ? '' : '…') . "'";
    }

    /** Returns a value as short JSON. */
    public static function show(mixed $value, int $longest = 60): string
    {
        $text = self::json($value);
        return strlen($text) <= $longest ? $text : substr($text, 0, $longest - 1) . '…';
    }

    private static function json(mixed $value): string
    {
        if (is_array($value) && array_is_list($value)) {
            return '[' . implode(', ', array_map(self::json(...), $value)) . ']';
        }
        if (is_array($value) || $value instanceof \stdClass) {
            $parts = [];
            foreach ((array) $value as $key => $item) {
                $parts[] = self::json((string) $key) . ': ' . self::json($item);
            }
            return '{' . implode(', ', $parts) . '}';
        }
        $text = json_encode($value, JSON_UNESCAPED_SLASHES | JSON_PRESERVE_ZERO_FRACTION);
        return $text === false ? get_debug_type($value) : $text;
    }

    /** Returns what JSON calls a value of this type; an empty array counts as a list. */
    public static function kind(mixed $value): string
    {
        return match (true) {
            $value === null => 'null',
            is_bool($value) => 'true or false',
            is_string($value) => 'a text',
            is_int($value), is_float($value) => 'a number',
            is_array($value) => array_is_list($value) ? 'a list' : 'an object',
            $value instanceof \stdClass => 'an object',
            default => 'a ' . get_debug_type($value),
        };
    }
}
