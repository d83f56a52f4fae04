<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Stack;
use KestrelStack\Consumer\Text;
use PHPUnit\Framework\TestCase;

final class TextTest extends TestCase
{
    /** @dataProvider texts */
    public function testNothingReachesATerminalRaw(string $text, string $shown): void
    {
        self::assertSame($shown, Text::printable($text));
    }

    public static function texts(): array
    {
        return [
            ['plain', 'plain'],
            ["a\tb\nc\r\x00\x1b[31m", 'a\tb\nc\r\x00\x1b[31m'],
            ["\u{2028}\u{202e}\x7f\u{85}\u{a0}", '\u2028\u202e\x7f\x85\xa0'],
            ["Zoë \u{1f98a}", "Zoë \u{1f98a}"],
            ["\u{e0001}", '\U000e0001'],
            ["\xff", '\xff'],
        ];
    }

    public function testATextIsCutBetweenCharacters(): void
    {
        self::assertSame('Zo', Text::head('Zoë', 3));
        self::assertSame('Zoë', Text::head('Zoë', 4));
        self::assertSame('a', Text::head("a\u{1f98a}", 4));
        self::assertSame('\xff\xff', Text::head("\xff\xff\xff", 2));
    }

    public function testAStackNamesFilesAndFunctionsAndNoArguments(): void
    {
        try {
            $this->fails('secret');
        } catch (\RuntimeException $thrown) {
            [[$file, $line, $function], [, , $caller]] = Stack::of($thrown);
            self::assertSame([__FILE__, self::class . '->fails'], [$file, $function]);
            self::assertSame(self::class . '->' . __FUNCTION__, $caller);
            self::assertStringStartsWith("\n  in " . __FILE__ . " line $line, ", Stack::text($thrown));
            self::assertStringNotContainsString('secret', Stack::text($thrown));
        }
    }

    private function fails(string $argument): never
    {
        throw new \RuntimeException('as told');
    }
}
