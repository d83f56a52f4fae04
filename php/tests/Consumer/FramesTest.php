<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\BrokenFrame;
use KestrelStack\Consumer\Frames;
use PHPUnit\Framework\TestCase;

final class FramesTest extends TestCase
{
    public function testMessagesArriveWholeWhereverTheStreamIsCut(): void
    {
        $sent = [[['type' => 'run', 'number' => 1], "\x00\xff body"], [['a' => 'Zoë'], '']];
        $sent[] = [[], str_repeat('x', 1000)];
        $data = implode('', array_map(static fn (array $message): string => Frames::encode(...$message), $sent));
        foreach ([1, 3, 8, 9, strlen($data)] as $size) {
            $frames = new Frames();
            $found = [];
            foreach (str_split($data, $size) as $part) {
                array_push($found, ...$frames->feed($part));
            }
            self::assertSame($sent, $found, "in pieces of $size");
        }
    }

    public function testTheFormatIsThatOfThePythonWorker(): void
    {
        self::assertSame("\0\0\0\x07\0\0\0\x02{\"a\":1}hi", Frames::encode(['a' => 1], 'hi'));
    }

    public function testTextThatIsNotUtf8DoesNotStopAMessage(): void
    {
        [[$head]] = (new Frames())->feed(Frames::encode(['text' => "\xff"]));
        self::assertSame("\u{fffd}", $head['text']);
    }

    /** @dataProvider nonsense */
    public function testNonsenseIsNotTakenForAMessage(string $data): void
    {
        $this->expectException(BrokenFrame::class);
        (new Frames())->feed($data);
    }

    public static function nonsense(): array
    {
        return [
            'text' => ['Hello, I am a print statement.'],
            'a head that is not JSON' => ["\0\0\0\x02\0\0\0\0{]"],
            'a head that is no object' => ["\0\0\0\x01\0\0\0\x001"],
            'a body too large' => ["\0\0\0\x02\xff\0\0\0{}"],
        ];
    }
}
