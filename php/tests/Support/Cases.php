<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Support;

/** The shared cases of tests/contract/jobs: one list for every language. */
final class Cases
{
    /**
     * Returns one part of a file of cases, by name, for a data provider.
     *
     * @return array<string, array{\stdClass}>
     */
    public static function of(string $file, string $part): array
    {
        $found = [];
        foreach (self::content($file)->$part as $number => $case) {
            $found[$number . ': ' . ($case->name ?? '')] = [$case];
        }
        return $found;
    }

    public static function content(string $file): \stdClass
    {
        $text = (string) file_get_contents(dirname(__DIR__, 3) . "/tests/contract/jobs/$file");
        return json_decode($text, false, 512, JSON_THROW_ON_ERROR);
    }
}
