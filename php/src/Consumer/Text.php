<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Text as QueueText;

/** Text that is always UTF-8 and always fits on one line, whatever bytes it was made of. */
final class Text
{
    /** Return $text with the bytes that are not UTF-8 written as `\xNN`. */
    public static function clean(string $text): string
    {
        return QueueText::clean($text);
    }

    /** Return any value as text: what is neither text nor a number becomes JSON or the name of its class. */
    public static function of(mixed $value): string
    {
        if (is_string($value)) {
            return self::clean($value);
        }
        if ($value instanceof \Stringable) {
            try {
                return self::clean((string) $value);
            } catch (\Throwable) {
                return '<' . self::className($value) . '>';
            }
        }
        if (is_object($value) && !$value instanceof \JsonSerializable && !$value instanceof \stdClass) {
            return $value instanceof \DateTimeInterface
                ? $value->format(\DATE_RFC3339_EXTENDED)
                : '<' . self::className($value) . '>';
        }
        try {
            $json = json_encode(
                $value,
                JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_INVALID_UTF8_SUBSTITUTE
                    | JSON_PARTIAL_OUTPUT_ON_ERROR,
            );
        } catch (\Throwable) {
            $json = false;
        }
        return $json === false ? '<' . get_debug_type($value) . '>' : $json;
    }

    /** Return the name of an object's class; that of an anonymous one without the path in it. */
    public static function className(object $object): string
    {
        return self::clean(explode("\0", $object::class)[0]);
    }

    /** Return $text with everything escaped that could break a line or confuse a terminal. */
    public static function printable(string $text): string
    {
        $text = self::clean($text);
        if (preg_match('/^[\x20-\x7e]*$/D', $text) === 1) {
            return $text;
        }
        return (string) preg_replace_callback(
            '/(?! )[\p{C}\p{Z}]/u',
            static fn (array $match): string => self::escape($match[0]),
            $text,
        );
    }

    /** Return at most $bytes bytes of the beginning of $text, cut between two characters. */
    public static function head(string $text, int $bytes): string
    {
        return self::clean(strlen($text) <= $bytes ? $text : self::whole(substr($text, 0, $bytes)));
    }

    private static function whole(string $cut): string
    {
        // The last character may have lost up to three of its bytes.
        return (string) preg_replace('/[\xc2-\xf4][\x80-\xbf]{0,2}$/D', '', $cut);
    }

    private static function escape(string $character): string
    {
        $short = ["\n" => '\n', "\r" => '\r', "\t" => '\t'][$character] ?? null;
        if ($short !== null) {
            return $short;
        }
        $bytes = array_values(unpack('C*', $character) ?: []);
        $point = match (count($bytes)) {
            1 => $bytes[0],
            2 => ($bytes[0] & 0x1f) << 6 | $bytes[1] & 0x3f,
            3 => ($bytes[0] & 0x0f) << 12 | ($bytes[1] & 0x3f) << 6 | $bytes[2] & 0x3f,
            default => ($bytes[0] & 0x07) << 18 | ($bytes[1] & 0x3f) << 12 | ($bytes[2] & 0x3f) << 6
                | $bytes[3] & 0x3f,
        };
        return sprintf($point < 0x100 ? '\x%02x' : ($point < 0x10000 ? '\u%04x' : '\U%08x'), $point);
    }
}
