<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Retry;
use KestrelStack\Tests\Support\Cases;
use PHPUnit\Framework\TestCase;

final class RetryTest extends TestCase
{
    public static function rules(): array
    {
        return array_filter(
            Cases::of('retries.json', 'rules'),
            static fn (array $case): bool => in_array($case[0]->failure, ['raises', 'timeout', 'asks_retry'], true),
        );
    }

    /** @dataProvider rules */
    public function testTheRuleHolds(\stdClass $case): void
    {
        $delay = Retry::nextDelay($case->attempt, $case->retry_delays, $case->delay ?? null);
        self::assertSame($case->outcome->retry_after ?? null, $delay);
    }
}
