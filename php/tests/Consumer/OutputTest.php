<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Log;
use KestrelStack\Consumer\Output;
use KestrelStack\Tests\Support\Cases;
use PHPUnit\Framework\TestCase;

final class OutputTest extends TestCase
{
    /** @var list<array{string, string}> */
    private array $lines = [];
    private Output $output;

    protected function setUp(): void
    {
        $this->output = new Output(new Log(function (string $level, string $event, array $fields): void {
            $this->lines[] = [$fields['stream'], $fields['text']];
        }));
    }

    public static function outputs(): array
    {
        return Cases::of('log.json', 'outputs');
    }

    /** @dataProvider outputs */
    public function testWhatIsPrintedBecomesTheLinesOfTheContract(\stdClass $case): void
    {
        fwrite($this->output->stdout(), base64_decode($case->bytes_b64));
        $this->output->finish();
        self::assertSame($case->texts, array_column($this->lines, 1));
    }

    public function testHalfALineWaitsForItsEnd(): void
    {
        fwrite($this->output->stdout(), "one\r\nthr");
        fwrite($this->output->stderr(), "bad\n");
        $this->output->drain();
        self::assertSame([['stdout', 'one'], ['stderr', 'bad']], $this->lines);
        fwrite($this->output->stdout(), "ee\n");
        $this->output->drain();
        self::assertSame(['stdout', 'three'], $this->lines[2]);
    }

    public function testHalfALineIsLoggedAtTheEndOfItsJob(): void
    {
        fwrite($this->output->stdout(), 'no end');
        $this->output->begin(new Log(static function (): void {
        }));
        self::assertSame([['stdout', 'no end']], $this->lines);
    }

    public function testLongLinesAreCut(): void
    {
        self::assertSame(Cases::content('log.json')->max_line, Output::MAX_LINE);
        fwrite($this->output->stdout(), str_repeat('x', Output::MAX_LINE + 5) . "\n");
        $this->output->drain();
        self::assertSame([Output::MAX_LINE, 5], array_map(strlen(...), array_column($this->lines, 1)));
    }

    public function testTheEndOfStderrIsKeptForTheParkedRecord(): void
    {
        fwrite($this->output->stdout(), 'not this');
        fwrite($this->output->stderr(), str_repeat('a', Output::TAIL) . 'the end');
        $this->output->drain();
        self::assertStringEndsWith('the end', $this->output->tail());
        self::assertSame(Output::TAIL, strlen($this->output->tail()));
        $this->output->begin(new Log(static function (): void {
        }));
        self::assertSame('', $this->output->tail());
    }

    public function testNothingPrintedIsNoWait(): void
    {
        $this->output->drain();
        $this->output->finish();
        self::assertSame([], $this->lines);
    }
}
