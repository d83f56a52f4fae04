<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** Where an error happened and who called that, without the worker's own part. */
final class Stack
{
    public const MAX_PLACES = 50;

    /**
     * Return the places, the innermost first: file, line, function.
     *
     * @return list<array{string, int, string}>
     */
    public static function of(\Throwable $thrown): array
    {
        $places = [];
        $file = $thrown->getFile();
        $line = $thrown->getLine();
        foreach ([...array_slice($thrown->getTrace(), 0, self::MAX_PLACES), null] as $caller) {
            $function = ($caller['class'] ?? '') . ($caller['type'] ?? '') . ($caller['function'] ?? '');
            if (!self::isOurs($file)) {
                $places[] = [Text::clean($file), $line, Text::clean(explode("\0", $function)[0])];
            }
            $file = $caller['file'] ?? '[internal]';
            $line = $caller['line'] ?? 0;
        }
        if ($places !== [] && $places[array_key_last($places)][0] === '[internal]') {
            array_pop($places);
        }
        return $places;
    }

    /** Return the places as lines, each with a line end before it. */
    public static function text(\Throwable $thrown): string
    {
        $text = '';
        foreach (self::of($thrown) as [$file, $line, $function]) {
            $text .= "\n  in $file" . ($line > 0 ? " line $line" : '') . ($function === '' ? '' : ", $function()");
        }
        return $text;
    }

    private static function isOurs(string $file): bool
    {
        return str_starts_with($file, __DIR__ . '/') || str_starts_with($file, dirname(__DIR__, 2) . '/bin/');
    }
}
