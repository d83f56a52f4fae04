<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Context;
use KestrelStack\Consumer\Log;
use KestrelStack\Consumer\Registry;
use PHPUnit\Framework\TestCase;

final class RegistryTest extends TestCase
{
    public function testAFunctionAMethodAndAClassCanDoAJob(): void
    {
        $registry = new Registry();
        $function = static fn (array $data, Context $context): int => 1;
        $registry->job('Function', $function)->job('Method', [$this, 'work'])->job('AClass', Work::class);
        self::assertSame($function, $registry->get('Function'));
        self::assertSame([$this, 'work'], $registry->get('Method'));
        self::assertInstanceOf(Work::class, $registry->get('AClass'));
        self::assertNotSame($registry->get('AClass'), $registry->get('AClass'));
        self::assertSame(['AClass', 'Function', 'Method'], $registry->names());
    }

    public function work(array $data, Context $context): void
    {
    }

    public function testANameFromAQueueIsOnlyLookedUp(): void
    {
        $registry = (new Registry())->job('Work', Work::class);
        foreach (['phpinfo', Work::class, '\\' . Work::class, 'work', 'WORK', '../Work', ''] as $name) {
            self::assertNull($registry->get($name), $name);
        }
    }

    /** @dataProvider refused */
    public function testWhatWouldNotRunIsRefused(string $name, mixed $function, string $said): void
    {
        $registry = (new Registry())->job('Taken', static fn (): int => 1);
        $this->expectException(\InvalidArgumentException::class);
        $this->expectExceptionMessage($said);
        $registry->job($name, $function);
    }

    public static function refused(): array
    {
        $fine = static fn (): int => 1;
        return [
            'an illegal name' => ['no-name', $fine, "'no-name' is not a job name"],
            'a name that breaks a line' => ["a\nb", $fine, "'a\\nb' is not a job name"],
            'a name that is taken' => ['Taken', $fine, 'The job Taken is registered twice.'],
            'a generator' => ['Job', static function () {
                yield 1;
            }, 'one with yield would not run'],
            'no class' => ['Job', 'Nowhere', "must be a function or a class with __invoke, not 'Nowhere'"],
            'a class that cannot be called' => ['Job', Log::class, 'must be a function or a class with __invoke'],
        ];
    }

    public function testWhatIsAroundJobsIsEnteredInOrderAndLeftInReverse(): void
    {
        $seen = [];
        $registry = new Registry();
        foreach (['outer', 'inner'] as $name) {
            $registry->around(static function (Context $context, callable $next) use ($name, &$seen): void {
                $seen[] = "enters $name for $context->tenant";
                try {
                    $next();
                } finally {
                    $seen[] = "leaves $name";
                }
            });
        }
        $context = new Context('A', 'id', 'acme', 1, 0, null, null, null, new Log(static function (): void {
        }));
        $thrown = new \RuntimeException('from the job');
        try {
            $registry->within($context, static function () use (&$seen, $thrown): void {
                $seen[] = 'works';
                throw $thrown;
            });
            self::fail('the error was swallowed');
        } catch (\RuntimeException $caught) {
            self::assertSame($thrown, $caught);
        }
        self::assertSame(
            ['enters outer for acme', 'enters inner for acme', 'works', 'leaves inner', 'leaves outer'],
            $seen,
        );
    }
}

final class Work
{
    public function __invoke(array $data, Context $context): void
    {
    }
}
