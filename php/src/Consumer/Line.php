<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * Log lines: one JSON object per event, or text for a reader when every action is shown.
 *
 * One event is one line, whatever text a job or a queue brought along.
 */
final class Line
{
    /** The keys of every line; a field of that name gets a "_" at its end. */
    public const OWN_KEYS = ['time' => 1, 'level' => 1, 'event' => 1];
    private const PLAIN = '~^[A-Za-z0-9_.:/@%+,*-]+$~D';

    private static int $second = -1;
    private static string $shown = '';

    /**
     * Return one line of JSON without its end, in ASCII. Fields that are null are left out.
     *
     * @param array<array-key, mixed> $fields
     */
    public static function json(string $level, string $event, array $fields, ?int $at = null): string
    {
        $shown = ['time' => self::stamp($at), 'level' => $level, 'event' => $event];
        foreach ($fields as $name => $content) {
            if ($content !== null) {
                $shown[isset(self::OWN_KEYS[$name]) ? "{$name}_" : $name] = self::plain($content);
            }
        }
        $line = json_encode($shown, JSON_UNESCAPED_SLASHES);
        if ($line === false) {
            // Some text is not UTF-8; looking at every text of every line would be dearer than this.
            $clean = [];
            foreach ($shown as $name => $content) {
                $clean[Text::clean((string) $name)] = is_string($content) ? Text::clean($content) : $content;
            }
            $line = json_encode($clean, JSON_UNESCAPED_SLASHES | JSON_PARTIAL_OUTPUT_ON_ERROR);
        }
        return (string) $line;
    }

    /**
     * Return one line of text without its end. Fields that are null are left out.
     *
     * @param array<array-key, mixed> $fields
     */
    public static function text(string $level, string $event, array $fields, ?int $at = null): string
    {
        $line = self::stamp($at) . " $level " . Text::printable($event);
        foreach ($fields as $name => $content) {
            if ($content !== null) {
                $line .= ' ' . Text::printable((string) $name) . '=' . self::value($content);
            }
        }
        return $line;
    }

    /** Return a field's value as text: bare when it is one plain word, otherwise quoted, always printable. */
    public static function value(mixed $content): string
    {
        $text = Text::of($content);
        if (preg_match(self::PLAIN, $text) === 1) {
            return $text;
        }
        return Text::printable(
            json_encode($text, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR),
        );
    }

    /** Return Unix milliseconds (null: now) as a line shows them: UTC. */
    public static function stamp(?int $at = null): string
    {
        $at ??= (int) (microtime(true) * 1000);
        $second = intdiv($at, 1000);
        if ($second !== self::$second) {
            // Most lines share their second with the one before.
            self::$second = $second;
            self::$shown = gmdate('Y-m-d\TH:i:s.', $second);
        }
        return self::$shown . substr((string) (1000 + $at % 1000), 1) . 'Z';
    }

    /** Return a value as JSON has it: a text, a number that every reader keeps, or a truth value. */
    private static function plain(mixed $content): string|int|float|bool
    {
        if (is_string($content) || is_int($content) || is_bool($content)) {
            return $content;
        }
        return is_float($content) && is_finite($content) ? $content : Text::of($content);
    }
}
