<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Envelope;
use KestrelStack\Queue\Errors\InvalidJob;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\Errors\SettingsError;
use KestrelStack\Queue\Producer;
use KestrelStack\Queue\Queue;
use KestrelStack\Queue\QueueSettings;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

/** What a producer sends, and what it refuses before anything is sent. */
final class ProducerTest extends TestCase
{
    private const ID = '6f9f9f9e-3a55-4a8e-9a54-0c9a8f5b7d10';

    private Queue $queue;
    private Producer $producer;

    protected function setUp(): void
    {
        $this->queue = Queue::open('memory://' . bin2hex(random_bytes(6)) . '/shop', ['hello_world', 'mail']);
        $this->producer = Producer::on($this->queue, 'acme');
    }

    public static function jobNames(): array
    {
        return [
            ['HelloWorld', 'hello_world'],
            ['PDFReport', 'pdf_report'],
            ['SendMail2Users', 'send_mail2_users'],
            ['mail', 'mail'],
            ['A', 'a'],
        ];
    }

    /** @dataProvider jobNames */
    public function testAJobsQueueIsItsNameInSnakeCase(string $job, string $queue): void
    {
        self::assertSame($queue, Producer::snakeCase($job));
    }

    public static function kept(): array
    {
        return [
            'nothing' => [[], '{}'],
            'text' => [['a' => 'Zoë/é"\\'], '{"a":"Zoë/é\"\\\\"}'],
            'line separators' => [['a' => "\u{2028}\0\n"], "{\"a\":\"\u{2028}\\u0000\\n\"}"],
            'numbers' => [['a' => 1, 'b' => 1.0, 'c' => 0.1, 'd' => PHP_INT_MAX], '{"a":1,"b":1.0,"c":0.1,"d":9223372036854775807}'],
            'others' => [['a' => null, 'b' => true, 'c' => false], '{"a":null,"b":true,"c":false}'],
            'lists and objects' => [['a' => [1, [2]], 'b' => ['x' => 1], 'c' => [], 'd' => new \stdClass()], '{"a":[1,[2]],"b":{"x":1},"c":[],"d":{}}'],
            'an object' => [(object) ['0' => 'a', '1' => 'b'], '{"0":"a","1":"b"}'],
            'keys that are numbers' => [['7' => 'a'], '{"7":"a"}'],
            'a key that begins with NUL' => [["\0a" => 1], '{"\u0000a":1}'],
        ];
    }

    /** @dataProvider kept */
    public function testDataArrivesAsItWasSent(array|\stdClass $data, string $json): void
    {
        $this->producer->enqueue('HelloWorld', $data, id: self::ID);
        $body = (string) $this->queue->peek('hello_world');
        self::assertStringContainsString('"data":' . $json . ',"attempt":1,', $body);
        self::assertSame(self::ID, Envelope::decode($body)->id);
    }

    public static function refused(): array
    {
        $deep = [];
        for ($level = 0; $level < 128; $level++) {
            $deep = ['a' => $deep];
        }
        $loop = ['x' => 1];
        $loop['loop'] = &$loop;
        return [
            'bytes' => [['a' => "\xff"], 'data.a holds text that is not UTF-8; encode bytes with base64.'],
            'bytes in a list' => [['a' => ['x', "\xff"]], 'data.a[1] holds text that is not UTF-8; encode bytes with base64.'],
            'a key of bytes' => [["\xff" => 1], 'a key of data holds text that is not UTF-8; encode bytes with base64.'],
            'infinite' => [['a' => INF], 'data.a is INF, which JSON cannot hold.'],
            'no number' => [['a' => ['b' => NAN]], 'data.a.b is NAN, which JSON cannot hold.'],
            'a date' => [['a' => new \DateTimeImmutable()], 'data.a is a DateTimeImmutable, which JSON cannot hold; use text, numbers, arrays, stdClass.'],
            'a function' => [['a' => static fn () => 1], 'data.a is a Closure, which JSON cannot hold; use text, numbers, arrays, stdClass.'],
            'a file' => [['a' => STDERR], 'data.a is a resource (stream), which JSON cannot hold; use text, numbers, arrays, stdClass.'],
            'too deep' => [$deep, "The job's data is nested more than 128 levels deep."],
            'itself' => [$loop, "The job's data is nested more than 128 levels deep."],
            'a list' => [['a', 'b'], "The field 'data' is a list, not an object."],
            'an object with a hidden key' => [['a' => (object) ["\0a" => 1]], 'data.a has a key that begins with NUL; use an array.'],
        ];
    }

    /** @dataProvider refused */
    public function testDataThatWouldNotArriveIsRefusedBeforeAnythingIsSent(array $data, string $said): void
    {
        try {
            $this->producer->enqueue('HelloWorld', $data);
            self::fail('it was sent');
        } catch (InvalidJob $error) {
            self::assertSame($said, $error->getMessage());
            self::assertSame(0, $this->queue->count('hello_world')->ready);
        }
    }

    public function testADepthThatEveryReaderTakesIsSent(): void
    {
        $deep = ['number' => 1.5, 'text' => 'x'];
        for ($level = 0; $level < 126; $level++) {
            $deep = ['a' => $deep];
        }
        $this->producer->enqueue('HelloWorld', $deep);
        self::assertSame($deep, Envelope::decode((string) $this->queue->peek('hello_world'))->data);
    }

    public function testAJobThatIsTooLargeIsRefused(): void
    {
        $producer = Producer::on($this->queue, 'acme', maxBytes: 1000);
        $this->expectException(InvalidJob::class);
        $this->expectExceptionMessageMatches('/\AThe job HelloWorld has 1[0-9]{3} bytes; at most 1000 are allowed\./');
        $producer->enqueue('HelloWorld', ['a' => str_repeat('x', 1000)]);
    }

    public function testAnIdIsKeptInOneForm(): void
    {
        foreach ([self::ID, strtoupper(self::ID), str_replace('-', '', self::ID), '{' . self::ID . '}'] as $id) {
            self::assertSame(self::ID, $this->producer->enqueue('HelloWorld', id: $id));
        }
        self::assertNotSame($this->producer->enqueue('HelloWorld'), $this->producer->enqueue('HelloWorld'));
        $this->expectException(InvalidJob::class);
        $this->expectExceptionMessage("The id 'seven' is not a UUID.");
        $this->producer->enqueue('HelloWorld', id: 'seven');
    }

    public static function wrongJobs(): array
    {
        return [
            'a path' => ['../../etc/passwd', 'mail', "The field 'job' is not a job name"],
            'a class' => ['App\\Job', 'mail', "The field 'job' is not a job name"],
            'no queue of its name' => ['Other', null, "The job 'Other' has no queue of its own name ('other'); give queue:, one of: hello_world, mail."],
            'an unknown queue' => ['Other', 'other', "The queue 'other' is not configured; configured: hello_world, mail."],
            'a queue of the stack' => ['Other', 'mail_errors', "The queue 'mail_errors' is not configured"],
        ];
    }

    /** @dataProvider wrongJobs */
    public function testAWrongJobOrQueueIsRefused(string $job, ?string $queue, string $said): void
    {
        $this->expectException(InvalidJob::class);
        $this->expectExceptionMessage($said);
        $this->producer->enqueue($job, queue: $queue);
    }

    public function testATenantThatIsAPathIsRefused(): void
    {
        $this->expectException(InvalidJob::class);
        $this->expectExceptionMessage("The field 'tenant' is not a tenant name");
        Producer::on($this->queue, '../../x')->enqueue('HelloWorld');
    }

    public function testAProducerWithoutDescriptionsLeavesTheQueueToItsCaller(): void
    {
        $queue = Queue::open('memory://' . bin2hex(random_bytes(6)) . '/shop');
        $producer = Producer::on($queue, 'acme');
        $producer->enqueue('HelloWorld', queue: 'any');
        self::assertSame(1, $queue->count('any')->ready);
        $this->expectException(InvalidQueueName::class);
        $producer->enqueue('HelloWorld', queue: 'any_errors');
    }

    public function testATraceIsPassedOnAndAnEmptyOneIsAnObject(): void
    {
        $this->producer->enqueue('HelloWorld', trace: ['sentry-trace' => 'a-b-1']);
        $this->producer->enqueue('HelloWorld', trace: []);
        $worker = $this->queue->worker('hello_world');
        $first = $worker->reserve(0);
        self::assertSame(['sentry-trace' => 'a-b-1'], Envelope::decode($first->body)->trace);
        self::assertStringContainsString('"trace":{}', $worker->reserve(0, $first)->body);
        $this->expectException(InvalidJob::class);
        $this->producer->enqueue('HelloWorld', trace: ['a' => 1]);
    }

    public function testItIsMadeFromTheSettingsOfTheApplication(): void
    {
        $folder = Program::folder();
        file_put_contents("$folder/shop.json", json_encode([
            'app' => 'shop',
            'namespace' => 'shop',
            'environment' => 'test',
            'servers' => ['127.0.0.1:1'],
            'queues' => [['name' => 'hello_world', 'language' => 'php', 'retry_delays' => [10]]],
        ]));
        try {
            $producer = Producer::fromSettings('acme', "$folder/shop.json", timeout: 0.5);
            self::assertSame('shop', $producer->namespace);
            $producer->enqueue('HelloWorld', delay: 10);
            self::fail('nobody is there');
        } catch (ServerUnavailable $error) {
            self::assertStringStartsWith('Not enqueued: 127.0.0.1:1 is not reachable', $error->getMessage());
        } finally {
            Program::remove($folder);
        }
        $this->expectException(SettingsError::class);
        Producer::fromSettings('acme', "$folder/shop.json");
    }

    public function testANamespaceThatIsNoneIsRefusedAtOnce(): void
    {
        $this->expectException(InvalidQueueName::class);
        new Producer('a.b', 'acme', '127.0.0.1:22133', [new QueueSettings('mail')]);
    }
}
