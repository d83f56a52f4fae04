<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Backoff;
use KestrelStack\Queue\Errors\InvalidServer;
use KestrelStack\Queue\Rotation;
use KestrelStack\Queue\Server;
use PHPUnit\Framework\TestCase;

/** Addresses, turns and waiting times. */
final class ServersTest extends TestCase
{
    public static function addresses(): array
    {
        return [
            ['a', ['a:22133']],
            ['a:1,b:65535', ['a:1', 'b:65535']],
            [' a , b ', ['a:22133', 'b:22133']],
            ['[::1]:5', ['[::1]:5']],
            ['[fe80::1]', ['[fe80::1]:22133']],
            [['10.0.0.1', new Server('b', 7)], ['10.0.0.1:22133', 'b:7']],
        ];
    }

    /** @dataProvider addresses */
    public function testAddressesAreRead(string|array $given, array $found): void
    {
        self::assertSame($found, array_map(strval(...), Server::parse($given)));
    }

    public static function wrongAddresses(): array
    {
        return [
            ['', "'' is not a server"],
            ['a,', "'' is not a server"],
            ['a:0', "The server 'a:0' has no such port"],
            ['a:65536', "The server 'a:65536' has no such port"],
            ['a:b', "'a:b' is not a server"],
            ["a\nb", "'a\\nb' is not a server"],
            ['::1', "'::1' is not a server"],
            ['a,a:22133', 'The server a:22133 is listed twice.'],
            [[], 'No server is given'],
            [[5], '5 is not a server'],
        ];
    }

    /** @dataProvider wrongAddresses */
    public function testAWrongAddressIsNamed(string|array $given, string $said): void
    {
        $this->expectException(InvalidServer::class);
        $this->expectExceptionMessage($said);
        Server::parse($given);
    }

    public function testWaitsDoubleUpToTheirLimitAndBeginAgain(): void
    {
        $backoff = new Backoff(0.2, 5.0, static fn (): float => 0.0);
        $waits = array_map(static fn (): float => $backoff->next(), range(1, 7));
        self::assertSame([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], $waits);
        for ($failure = 0; $failure < 3000; $failure++) {
            self::assertSame(5.0, $backoff->next());
        }
        $backoff->reset();
        self::assertSame(0.2, $backoff->next());
        self::assertSame(0.1, (new Backoff(0.2, 5.0, static fn (): float => 1.0))->next());
        $drawn = new Backoff();
        self::assertThat($drawn->next(), self::logicalAnd(self::greaterThanOrEqual(0.1), self::lessThanOrEqual(0.2)));
    }

    public function testEveryServerHasItsTurn(): void
    {
        $rotation = new Rotation(Server::parse('a,b,c'), 4);
        $visited = [];
        for ($visit = 0; $visit < 5; $visit++) {
            $visited[] = $rotation->current()->host;
            $rotation->advance();
        }
        self::assertSame(['b', 'c', 'a', 'b', 'c'], $visited);
        self::assertCount(3, $rotation);
    }

    public function testAServerThatFailedIsLeftOutUntilItsWaitIsOver(): void
    {
        $now = 100.0;
        $clock = static function () use (&$now): float {
            return $now;
        };
        $backoff = static fn (): Backoff => new Backoff(1.0, 8.0, static fn (): float => 0.0);
        $rotation = new Rotation(Server::parse('a,b'), 0, $clock, $backoff);
        $rotation->failed();
        self::assertSame(['b', 0.0], [$rotation->current()->host, $rotation->pause()]);
        $rotation->advance();
        self::assertSame('b', $rotation->current()->host);
        $now += 0.5;
        $rotation->failed();
        // Both fail: the one whose wait ends first is next.
        self::assertSame(['a', 0.5], [$rotation->current()->host, $rotation->pause()]);
        $now += 0.5;
        self::assertSame(0.0, $rotation->pause());
        $rotation->failed();
        self::assertSame(['b', 0.5], [$rotation->current()->host, $rotation->pause()]);
        $now += 0.5;
        $rotation->answered();
        $rotation->advance();
        self::assertSame('b', $rotation->current()->host);
        $now += 2.0;
        $rotation->advance();
        self::assertSame(['a', 0.0], [$rotation->current()->host, $rotation->pause()]);
    }
}
