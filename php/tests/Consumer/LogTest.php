<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\KeptBack;
use KestrelStack\Consumer\Line;
use KestrelStack\Consumer\Log;
use KestrelStack\Consumer\Writer;
use KestrelStack\Tests\Support\Cases;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

final class LogTest extends TestCase
{
    public static function lines(): array
    {
        return Cases::of('log.json', 'lines');
    }

    /** @dataProvider lines */
    public function testALineIsThatOfTheContract(\stdClass $case): void
    {
        $fields = (array) $case->fields;
        $json = Line::json($case->level, $case->event, $fields, $case->at);
        self::assertEquals($case->record, json_decode($json, false, 512, JSON_THROW_ON_ERROR));
        self::assertMatchesRegularExpression('/^[\x20-\x7f]+$/D', $json);
        self::assertSame($case->text, Line::text($case->level, $case->event, $fields, $case->at));
    }

    public function testTextThatIsNotUtf8IsShownAndBreaksNoLine(): void
    {
        $record = json_decode(Line::json('info', "a\xff", ["k\xfe" => "v\xc3\n", 'n' => 1]), true);
        self::assertSame(['a\xff', "v\\xc3\n", 1], [$record['event'], $record['k\xfe'], $record['n']]);
        $text = Line::text('info', "a\xff", ["k\xfe" => "v\xc3\n"]);
        self::assertStringEndsWith(' info a\xff k\xfe="v\\\\xc3\n"', $text);
    }

    public function testAnyValueCanBeLogged(): void
    {
        $odd = new class {
            public function __toString(): string
            {
                throw new \RuntimeException();
            }
        };
        $fields = ['list' => [1, 'a'], 'odd' => $odd, 'inf' => INF, 'half' => 0.5, 'stream' => STDIN, 'loop' => null];
        $record = json_decode(Line::json('info', 'e', $fields), true);
        self::assertSame('[1,"a"]', $record['list']);
        self::assertSame('<class@anonymous>', $record['odd']);
        self::assertSame(0.5, $record['half']);
        self::assertIsString($record['inf']);
        self::assertArrayNotHasKey('loop', $record);
    }

    public function testBoundFieldsAreOnEveryLineAndDebugOnlyWhenWanted(): void
    {
        $stream = fopen('php://memory', 'r+');
        $log = (new Writer(false, $stream))->log()->bind(['job' => 'A']);
        $log->debug('hidden');
        $log->warning('shown', ['ms' => 1]);
        (new Writer(true, $stream))->log()->debug('also shown');
        rewind($stream);
        [$first, $second] = explode("\n", (string) stream_get_contents($stream));
        self::assertSame(['shown', 'A', 1], array_slice(array_values(json_decode($first, true)), 2));
        self::assertStringEndsWith(' debug also shown', $second);
    }

    public function testALogThatCannotBeWrittenDoesNotStopTheWork(): void
    {
        $full = fopen('/dev/full', 'w');
        stream_set_write_buffer($full, 0);
        (new Writer(false, $full))->log()->info('into a full disk');
        [$ours, $theirs] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        fclose($theirs);
        (new Writer(false, $ours))->log()->info('into a closed pipe');
        $this->addToAssertionCount(1);
    }

    public function testALogFileIsAppendedToAndOpenedAgainByItsName(): void
    {
        $folder = Program::folder();
        try {
            file_put_contents("$folder/log", "before\n");
            $writer = new Writer(true, file: "$folder/log");
            $writer->log()->info('one');
            rename("$folder/log", "$folder/log.1");
            $writer->log()->info('two');
            $writer->reopen();
            $writer->log()->info('three');
            $old = (string) file_get_contents("$folder/log.1");
            self::assertMatchesRegularExpression('/\Abefore\n\S+ info one\n\S+ info two\n\z/', $old);
            self::assertMatchesRegularExpression('/\A\S+ info three\n\z/', (string) file_get_contents("$folder/log"));
            self::assertSame(0640, fileperms("$folder/log") & 0777);
        } finally {
            Program::remove($folder);
        }
    }

    public function testALogFileThatCannotBeOpenedIsOneSentence(): void
    {
        $this->expectException(\RuntimeException::class);
        $this->expectExceptionMessage('No such file or directory');
        new Writer(false, file: '/nowhere/log');
    }

    public function testWhatIsKeptBackIsTheNewestAndWhatIsMissingIsCounted(): void
    {
        $limits = Cases::content('log.json')->kept_back;
        self::assertSame([$limits->max_lines, $limits->max_bytes], [KeptBack::MAX_LINES, KeptBack::MAX_BYTES]);
        $kept = new KeptBack(3, 1000);
        foreach (range(1, 5) as $number) {
            $kept->add('step', ['number' => $number]);
        }
        self::assertSame([3, 4, 5], array_column(array_column($kept->lines(), 2), 'number'));
        self::assertSame(2, $kept->dropped());
        $kept->add('large', ['text' => str_repeat('x', 990)]);
        self::assertSame(['large'], array_column($kept->lines(), 1));
        $stream = fopen('php://memory', 'r+');
        $writer = new Writer(false, $stream);
        $kept->write($writer, $writer->log());
        rewind($stream);
        [$first, $second] = explode("\n", (string) stream_get_contents($stream));
        [$first, $second] = [json_decode($first, true), json_decode($second, true)];
        self::assertSame(['warning', 'lines dropped', 5], [$first['level'], $first['event'], $first['count']]);
        self::assertSame(['debug', 'large'], [$second['level'], $second['event']]);
        $kept->clear();
        self::assertSame([[], 0], [$kept->lines(), $kept->dropped()]);
    }

    public function testALogPassesItsLevelOn(): void
    {
        $seen = [];
        $log = new Log(static function (string $level, string $event, array $fields) use (&$seen): void {
            $seen[] = $level;
        });
        foreach (Log::LEVELS as $level) {
            $log->$level('event');
            $log->log($level, 'event');
        }
        self::assertSame(['debug', 'debug', 'info', 'info', 'warning', 'warning', 'error', 'error'], $seen);
    }
}
