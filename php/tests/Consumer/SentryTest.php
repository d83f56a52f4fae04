<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Log;
use KestrelStack\Consumer\Repeats;
use KestrelStack\Consumer\Reporter;
use KestrelStack\Consumer\Sentry;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

/** Against a real HTTP server, which stands in for Sentry: it keeps what it is sent. */
final class SentryTest extends TestCase
{
    private const ROUTER = <<<'PHP'
        <?php
        $folder = getenv('TEST_FOLDER');
        if ($_SERVER['REQUEST_METHOD'] === 'POST') {
            $sent = ['path' => $_SERVER['REQUEST_URI'], 'auth' => $_SERVER['HTTP_X_SENTRY_AUTH'] ?? null];
            $sent += ['type' => $_SERVER['CONTENT_TYPE'], 'body' => base64_encode(file_get_contents('php://input'))];
            file_put_contents("$folder/sent", json_encode($sent) . "\n", FILE_APPEND);
            http_response_code((int) (@file_get_contents("$folder/status") ?: 200));
            header('Retry-After: 7');
            header('Content-Type: ' . (@file_get_contents("$folder/type") ?: 'application/json'));
        }
        PHP;

    private string $folder;
    private ?Program $server = null;
    private int $port;
    /** @var list<array{string, string, array<string, mixed>}> */
    private array $lines = [];
    private Log $log;

    protected function setUp(): void
    {
        $this->folder = Program::folder();
        file_put_contents("$this->folder/router.php", self::ROUTER);
        $free = stream_socket_server('tcp://127.0.0.1:0');
        $this->port = (int) explode(':', (string) stream_socket_get_name($free, false))[1];
        fclose($free);
        $this->log = new Log(function (string $level, string $event, array $fields): void {
            $this->lines[] = [$level, $event, $fields];
        });
    }

    protected function tearDown(): void
    {
        $this->server?->kill();
        Program::remove($this->folder);
    }

    public function testAnEventArrivesWithItsTagsFramesAndBreadcrumbs(): void
    {
        $this->startServer();
        $thrown = new \DomainException("no \xff");
        $lines = [[1795227300123, 'debug', 'step', ['number' => 1, 'text' => str_repeat('x', 5000)]]];
        $tags = ['job' => 'HelloWorld', 'queue' => 'shop_work', 'tenant' => 'acme', 'attempt' => 2, 'release' => null];
        $event = Sentry::event('DomainException', "no \xff", 'warning', $tags, Sentry::frames($thrown), $lines);
        $reporter = new Reporter($this->dsn(), $this->log, ['environment' => 'test', 'release' => null]);
        $id = $reporter->report($event);
        $reporter->close(Program::DEADLINE);
        self::assertSame([['info', 'errors', ['reported' => 1, 'repeated' => 0, 'not_reported' => 0]]], $this->lines);
        [$sent] = $this->sent();
        self::assertSame('/prefix/api/7/envelope/', $sent['path']);
        self::assertSame('application/x-sentry-envelope', $sent['type']);
        self::assertStringEndsWith(', sentry_key=abc123', $sent['auth']);
        [$head, $item, $data] = explode("\n", base64_decode($sent['body']));
        self::assertSame($id, json_decode($head)->event_id);
        self::assertEquals((object) ['type' => 'event', 'length' => strlen($data)], json_decode($item));
        $found = json_decode($data, true);
        self::assertSame([$id, 'warning', 'test'], [$found['event_id'], $found['level'], $found['environment']]);
        $tags = ['job' => 'HelloWorld', 'queue' => 'shop_work', 'tenant' => 'acme', 'attempt' => '2'];
        self::assertEquals($tags, $found['tags']);
        self::assertSame('no \xff', $found['exception']['values'][0]['value']);
        $frames = $found['exception']['values'][0]['stacktrace']['frames'];
        $last = end($frames);
        self::assertSame(__FILE__, $last['abs_path']);
        self::assertSame(substr(__FILE__, strlen(getcwd()) + 1), $last['filename']);
        self::assertSame('        $thrown = new \DomainException("no \xff");', $last['context_line']);
        self::assertSame([5, 5], [count($last['pre_context']), count($last['post_context'])]);
        $how = ['type' => 'kestrel_stack', 'handled' => false];
        self::assertSame($how, $found['exception']['values'][0]['mechanism']);
        self::assertSame('2026-11-21T02:15:00.123Z', $found['breadcrumbs']['values'][0]['timestamp']);
        self::assertSame(Sentry::MAX_CRUMB_TEXT, strlen($found['breadcrumbs']['values'][0]['data']['text']));
    }

    public function testWhatSentryRefusesIsSaidOnceAndThatItIsBack(): void
    {
        $this->startServer();
        file_put_contents("$this->folder/status", '503');
        $reporter = new Reporter($this->dsn(), $this->log, []);
        $this->reportAndWait($reporter, 2);
        unlink("$this->folder/status");
        $this->reportAndWait($reporter, 1);
        $reporter->close();
        $said = "http://127.0.0.1:$this->port answered with status 503.";
        self::assertSame([
            ['warning', 'sentry is away', ['error' => $said]],
            ['debug', 'sentry is still away', ['error' => $said]],
            ['info', 'sentry is back', ['not_reported' => 2, 'away' => $this->lines[2][2]['away']]],
            ['warning', 'errors were not reported', ['count' => 2]],
            ['info', 'errors', ['reported' => 1, 'repeated' => 0, 'not_reported' => 2]],
        ], $this->lines);
    }

    public function testAWishForQuietIsHeeded(): void
    {
        $this->startServer();
        file_put_contents("$this->folder/status", '429');
        self::assertSame(7.0, Sentry::at($this->dsn())->send("{}\n", refused: $refused));
        self::assertStringEndsWith(' answered with status 429.', $refused);
        $reporter = new Reporter($this->dsn(), $this->log, []);
        $this->reportAndWait($reporter, 3);
        $reporter->close();
        self::assertCount(2, $this->sent());
    }

    public function testAPageForPeopleIsNotSentrysAnswer(): void
    {
        $this->startServer();
        file_put_contents("$this->folder/type", 'text/html; charset=utf-8');
        Sentry::at($this->dsn())->send("{}\n", refused: $refused);
        self::assertStringEndsWith(' answered with a web page: that is not Sentry.', $refused);
    }

    public function testASentryThatIsSilentHoldsUpNobodyAndCostsNoMemory(): void
    {
        $silent = stream_socket_server("tcp://127.0.0.1:$this->port");
        $reporter = new Reporter($this->dsn(), $this->log, [], new Repeats(1000));
        for ($number = 0; $number < Reporter::MAX_WAITING + 5; $number++) {
            $reporter->report($this->event());
        }
        $reporter->close(0.2);
        $lost = ['count' => Reporter::MAX_WAITING + 5];
        self::assertSame([
            ['warning', 'errors were not reported', $lost],
            ['info', 'errors', ['reported' => 0, 'repeated' => 0, 'not_reported' => $lost['count']]],
        ], $this->lines);
        fclose($silent);
    }

    /** @dataProvider wishes */
    public function testForHowLongAnAnswerAsksForQuiet(
        string $status,
        ?string $limits,
        string $after,
        float $wait,
    ): void {
        self::assertSame($wait, Sentry::quietSeconds($status, $limits, $after));
    }

    public static function wishes(): array
    {
        return [
            ['200', null, '', 0.0],
            ['429', null, '', 60.0],
            ['429', null, '5', 5.0],
            ['429', null, '99999', Sentry::MAX_QUIET],
            ['429', null, 'Thu, 01 Jan 1970 00:00:00 GMT', 0.0],
            ['429', null, 'soon', 60.0],
            ['500', null, '5', 0.0],
            ['200', '30:error:organization', '', 30.0],
            ['429', '30:transaction;session:key', '90', 0.0],
            ['429', '10::organization, 20:transaction;error:key:quota', '90', 20.0],
            ['429', 'nonsense', '', 0.0],
        ];
    }

    public function testOfOneErrorTheFirstAreSentAndTheOthersAreCounted(): void
    {
        $repeats = new Repeats(2, 3600.0);
        $key = Repeats::key('Error', "order 1234 of 7f9f9f9e-12ab is late\nmore", 'error', 'A');
        self::assertSame($key, Repeats::key('Error', 'order 5 of 0a1b2c3d4e is late', 'error', 'A'));
        self::assertNotSame($key, Repeats::key('Error', 'order 5 of 0a1b2c3d4e is late', 'error', 'B'));
        self::assertNotSame($key, Repeats::key('Error', 'order 5 of 0a1b2c3d4e is lost', 'error', 'A'));
        self::assertNotSame($key, Repeats::key('Error', 'order 5 of 0a1b2c3d4e is late', 'warning', 'A'));
        self::assertSame([0, 0, null, null], array_map($repeats->count(...), array_fill(0, 4, $key)));
        self::assertSame(0, $repeats->count('another'));
        $repeats->sent($key, 'an id');
        self::assertSame(['an id', null], [$repeats->last($key), $repeats->last('another')]);
    }

    public function testASentEventSaysHowManyWereHeldBack(): void
    {
        $repeats = new Repeats(1, 0.05);
        self::assertSame([0, null, null], array_map($repeats->count(...), ['a', 'a', 'a']));
        Program::wait(static fn (): bool => $repeats->count('b') !== null && $repeats->count('c') !== null, 'others');
        usleep(60_000);
        self::assertSame(2, $repeats->count('a'));
    }

    public function testWhatAChildHeldBackIsToldWithTheNextEvent(): void
    {
        $this->startServer();
        $reporter = new Reporter($this->dsn(), $this->log, [], new Repeats(1, 0.05));
        $this->reportAndWait($reporter, 1);
        for ($number = 0; $number < 500; $number++) {
            $reporter->noteRepeated(Repeats::key('Error', 'no', 'error', 'A'));
        }
        usleep(60_000);
        $this->reportAndWait($reporter, 1);
        $last = $this->sent()[1];
        $event = json_decode(explode("\n", base64_decode($last['body']))[2], true);
        self::assertSame([Sentry::REPEATED => 500], $event['extra']);
        self::assertSame(['reported' => 2, 'repeated' => 500, 'not_reported' => 0], $reporter->counts());
    }

    public function testNoRecordNamesAnEventThatCouldNotBeSent(): void
    {
        $this->startServer();
        file_put_contents("$this->folder/status", '503');
        $reporter = new Reporter($this->dsn(), $this->log, [], new Repeats(1));
        self::assertNotNull($reporter->report($this->event()));
        $this->reportAndWait($reporter, 0);
        self::assertNull($reporter->report($this->event()));
        self::assertNull($reporter->noteRepeated(Repeats::key('Error', 'no', 'error', 'A')));
    }

    public function testAnEventIsNeverTooLargeForSentry(): void
    {
        $lines = [];
        for ($number = 0; $number < Sentry::MAX_CRUMBS; $number++) {
            $fields = [];
            for ($field = 0; $field < 20; $field++) {
                $fields["field$field"] = str_repeat("\xc3\xa9\0", 1000);
            }
            $lines[] = [1795227300123, 'info', 'step', $fields];
        }
        $event = Sentry::fitting(
            Sentry::event('Error', str_repeat("\0", 4096), 'error', ['job' => 'A'], lines: $lines, stack: 'here'),
        );
        $data = explode("\n", Sentry::envelope($event))[2];
        self::assertLessThanOrEqual(Sentry::MAX_EVENT, strlen($data));
        $found = json_decode($data, true);
        self::assertSame(str_repeat("\0", 4096), $found['exception']['values'][0]['value']);
        self::assertGreaterThanOrEqual(10, count($found['breadcrumbs']['values']));
        self::assertArrayNotHasKey('data', $found['breadcrumbs']['values'][0]);
    }

    public function testASentryThatIsNotThereIsOneSentenceWithoutTheKey(): void
    {
        try {
            Sentry::at($this->dsn())->send("{}\n");
            self::fail('nobody answers there');
        } catch (\RuntimeException $exc) {
            $said = "http://127.0.0.1:$this->port is not reachable: Connection refused.";
            self::assertSame($said, $exc->getMessage());
        }
    }

    /** @dataProvider wrong */
    public function testAWrongDsnIsRefusedWithoutShowingIt(string $dsn): void
    {
        try {
            Sentry::at($dsn);
            self::fail('it was taken');
        } catch (\InvalidArgumentException $exc) {
            self::assertStringContainsString('is not like https://KEY@HOST/PROJECT', $exc->getMessage());
            self::assertStringNotContainsString('s3cret', $exc->getMessage());
        }
    }

    public static function wrong(): array
    {
        $wrong = ['', 's3cret', 'https://h/1', 'ftp://s3cret@h/1', 'https://s3cret@h', "https://s3cret@h/1\n/"];
        array_push($wrong, 'https://s3cret@h:99999/1', 'https://s3cret@h o/1');
        return array_map(static fn (string $dsn): array => [$dsn], $wrong);
    }

    private function startServer(): void
    {
        $command = [PHP_BINARY, '-S', "127.0.0.1:$this->port", "$this->folder/router.php"];
        $this->server = new Program($command, ['TEST_FOLDER' => $this->folder]);
        $this->server->waitUntil(
            fn (): bool => is_resource(@stream_socket_client("tcp://127.0.0.1:$this->port", timeout: 1)),
            'the server to answer',
        );
    }

    private function reportAndWait(Reporter $reporter, int $count): void
    {
        for ($number = 0; $number < $count; $number++) {
            $reporter->report($this->event());
        }
        Program::wait(function () use ($reporter): bool {
            $reporter->tend();
            return $reporter->waiting() === 0;
        }, 'the events to be answered');
    }

    /** @return array<string, mixed> */
    private function event(): array
    {
        return Sentry::event('Error', 'no', 'error', ['job' => 'A']);
    }

    private function dsn(): string
    {
        return "http://abc123@127.0.0.1:$this->port/prefix/7";
    }

    /** @return list<array<string, string>> */
    private function sent(): array
    {
        $lines = file("$this->folder/sent", FILE_IGNORE_NEW_LINES) ?: [];
        return array_map(static fn (string $line): array => json_decode($line, true), $lines);
    }
}
