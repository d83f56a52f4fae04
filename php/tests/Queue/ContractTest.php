<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Envelope;
use KestrelStack\Queue\Errors\InvalidEnvelope;
use KestrelStack\Queue\Errors\InvalidParkedRecord;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Names;
use KestrelStack\Queue\ParkedRecord;
use KestrelStack\Queue\Ping;
use KestrelStack\Tests\Support\Cases;
use PHPUnit\Framework\TestCase;

/** The shared cases of the contracts, which the Python implementation is held to as well. */
final class ContractTest extends TestCase
{
    public static function validEnvelopes(): array
    {
        return Cases::of('envelopes.json', 'valid');
    }

    /** @dataProvider validEnvelopes */
    public function testAValidEnvelopeIsReadAndWrittenBackWithTheSameMeaning(\stdClass $case): void
    {
        $body = base64_decode($case->body_b64);
        $envelope = Envelope::decode($body);
        self::assertSame($case->id, $envelope->id);
        self::assertSame($case->job, $envelope->job);
        self::assertSame($case->tenant, $envelope->tenant);
        self::assertSame($case->attempt, $envelope->attempt);
        self::assertSame($case->enqueued_at, $envelope->enqueuedAt);
        self::assertSame($body, $envelope->encode());
    }

    /** @dataProvider validEnvelopes */
    public function testItsPartsMakeTheSameEnvelopeAgain(\stdClass $case): void
    {
        $body = base64_decode($case->body_b64);
        $read = Envelope::decode($body);
        $made = new Envelope(
            $read->job,
            $read->tenant,
            $read->data,
            $read->id,
            $read->attempt,
            $read->enqueuedAt,
            $read->dueAt,
            $read->trace,
        );
        self::assertEquals(json_decode($body), json_decode($made->encode()));
    }

    public static function invalidEnvelopes(): array
    {
        return Cases::of('envelopes.json', 'invalid');
    }

    /** @dataProvider invalidEnvelopes */
    public function testAnInvalidEnvelopeIsRefusedWithASentencePerFault(\stdClass $case): void
    {
        try {
            Envelope::decode(base64_decode($case->body_b64));
            self::fail('it was taken');
        } catch (InvalidEnvelope $error) {
            if ($case->faults === null) {
                self::assertCount(1, $error->faults);
                self::assertStringStartsWith('The item is not ', $error->faults[0]);
            } else {
                self::assertSame($case->faults, $error->faults);
            }
            self::assertSame(implode(' ', $error->faults), $error->getMessage());
            foreach ($error->faults as $fault) {
                self::assertStringEndsWith('.', $fault);
                self::assertStringNotContainsString("\n", $fault);
            }
        }
    }

    public function testAWholeNumberBeyond64BitsLosesNoDigitAndIsNeverTakenForAText(): void
    {
        $number = '123456789012345678901234567890';
        $base = '{"v":1,"id":"6f9f9f9e-3a55-4a8e-9a54-0c9a8f5b7d10","job":"HelloWorld","attempt":1,"enqueued_at":0,';
        $body = $base . '"tenant":"acme","data":{"n":' . $number . ',"small":1,"list":[],"object":{}}}';
        $envelope = Envelope::decode($body);
        self::assertSame(['n' => $number, 'small' => 1, 'list' => [], 'object' => []], $envelope->data);
        self::assertSame($body, $envelope->encode());
        self::assertStringContainsString('"data":{"n":' . $number . ',', Envelope::again($body, 5));
        $this->expectException(InvalidEnvelope::class);
        $this->expectExceptionMessage("The field 'tenant' is not a tenant name");
        Envelope::decode($base . '"data":{},"tenant":' . $number . '}');
    }

    public function testAFreshEnvelopeIsAFirstTryThatIsDueNow(): void
    {
        $body = (new Envelope('HelloWorld', 'acme', ['a' => 1], attempt: 7, enqueuedAt: 5))->encode();
        $before = (int) (microtime(true) * 1000);
        $fresh = Envelope::decode(Envelope::afresh($body));
        self::assertSame([1, 5, ['a' => 1]], [$fresh->attempt, $fresh->enqueuedAt, $fresh->data]);
        self::assertGreaterThanOrEqual($before, $fresh->dueAt);
    }

    public function testAParkedRecordHoldsAnyBytesAndAnyText(): void
    {
        $bytes = implode('', array_map(chr(...), range(0, 255)));
        $error = ['class' => 'E', 'message' => "\xff é", 'stack' => $bytes];
        $record = ParkedRecord::decode((new ParkedRecord("why\xfe", $bytes, 3, $error, 'abc', 17))->encode());
        self::assertSame($bytes, $record->body);
        self::assertSame('why\xfe', $record->reason);
        self::assertSame('\xff é', $record->error['message']);
        self::assertSame([3, 'abc', 17], [$record->attempts, $record->sentryEvent, $record->parkedAt]);
    }

    public static function triesAgain(): array
    {
        return Cases::of('retries.json', 'again');
    }

    /** @dataProvider triesAgain */
    public function testAnEnvelopeForAnotherTryMeansTheSameOtherwise(\stdClass $case): void
    {
        $again = Envelope::again(base64_decode($case->body_b64), $case->due_at);
        $expected = base64_decode($case->again_b64);
        $flags = JSON_BIGINT_AS_STRING;
        self::assertEquals(json_decode($expected, false, 512, $flags), json_decode($again, false, 512, $flags));
        self::assertSame(Envelope::decode($expected)->attempt, Envelope::decode($again)->attempt);
        self::assertSame($case->due_at, Envelope::decode($again)->dueAt);
    }

    public static function noFurtherTries(): array
    {
        return Cases::of('retries.json', 'again_refused');
    }

    /** @dataProvider noFurtherTries */
    public function testWhatNoWorkerWouldTakeIsNotWritten(\stdClass $case): void
    {
        try {
            Envelope::again(base64_decode($case->body_b64), $case->due_at);
            self::fail('it was written');
        } catch (InvalidEnvelope | \ValueError $error) {
            self::assertStringEndsWith('.', $error->getMessage());
        }
    }

    public static function validRecords(): array
    {
        return Cases::of('parked.json', 'valid');
    }

    /** @dataProvider validRecords */
    public function testAValidParkedRecordIsReadAndWrittenBack(\stdClass $case): void
    {
        $record = ParkedRecord::decode(json_encode($case->record, JSON_THROW_ON_ERROR));
        self::assertEquals($case->record, json_decode($record->encode()));
    }

    public static function invalidRecords(): array
    {
        return Cases::of('parked.json', 'invalid');
    }

    /** @dataProvider invalidRecords */
    public function testAnInvalidParkedRecordIsRefused(\stdClass $case): void
    {
        $this->expectException(InvalidParkedRecord::class);
        ParkedRecord::decode(json_encode($case->record, JSON_THROW_ON_ERROR));
    }

    public static function validNames(): array
    {
        return Cases::of('names.json', 'valid');
    }

    /** @dataProvider validNames */
    public function testAQueueGetsItsNameOnTheServer(\stdClass $case): void
    {
        $name = Names::make($case->namespace, $case->queue);
        self::assertSame($case->name, $name);
        self::assertSame($case->errors, Names::errors($name));
    }

    public static function retryNames(): array
    {
        return Cases::of('names.json', 'retry');
    }

    /** @dataProvider retryNames */
    public function testARetryQueueGetsItsNameOnTheServer(\stdClass $case): void
    {
        self::assertSame($case->retry, Names::retry($case->name, $case->seconds));
    }

    public static function pingNames(): array
    {
        return Cases::of('names.json', 'ping');
    }

    /** @dataProvider pingNames */
    public function testAPingQueueGetsItsNameOnTheServer(\stdClass $case): void
    {
        $name = Names::ping($case->name, $case->host);
        self::assertSame($case->ping, $name);
        self::assertSame($case->answers, Names::pingAnswers($name));
    }

    public static function tooLongPingNames(): array
    {
        return Cases::of('names.json', 'ping_too_long');
    }

    /** @dataProvider tooLongPingNames */
    public function testAPingQueueWhoseAnswersWouldHaveTooLongANameIsRefused(\stdClass $case): void
    {
        $this->expectException(InvalidQueueName::class);
        Names::ping($case->name, $case->host);
    }

    public static function validPings(): array
    {
        return Cases::of('pings.json', 'valid');
    }

    /** @dataProvider validPings */
    public function testAPingIsRead(\stdClass $case): void
    {
        $ping = Ping::decode(base64_decode($case->body_b64));
        self::assertNotNull($ping);
        self::assertSame([$case->id, $case->deploy], [$ping->id, $ping->deploy]);
    }

    public static function invalidPings(): array
    {
        return Cases::of('pings.json', 'invalid');
    }

    /** @dataProvider invalidPings */
    public function testWhatIsNoPingIsNotTakenForOne(\stdClass $case): void
    {
        self::assertNull(Ping::decode(base64_decode($case->body_b64)));
    }

    public static function answers(): array
    {
        return Cases::of('pings.json', 'answers');
    }

    /** @dataProvider answers */
    public function testAPingIsAnswered(\stdClass $case): void
    {
        $ping = Ping::decode(base64_decode($case->ping_b64));
        self::assertNotNull($ping);
        self::assertEquals($case->answer, json_decode($ping->answered(...(array) $case->worker)));
    }

    public static function invalidNames(): array
    {
        return Cases::of('names.json', 'invalid');
    }

    /** @dataProvider invalidNames */
    public function testAnIllegalQueueNameIsRefused(\stdClass $case): void
    {
        $this->expectException(InvalidQueueName::class);
        Names::make($case->namespace, $case->queue);
    }
}
