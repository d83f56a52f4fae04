<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Errors\Busy;
use KestrelStack\Queue\Errors\StoreFailed;
use KestrelStack\Queue\Once;
use KestrelStack\Queue\PdoStore;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

/** Once, on SQLite: the database that can run here. The statements for MySQL are not run by any test. */
final class OnceTest extends TestCase
{
    private string $folder;
    private \PDO $database;

    protected function setUp(): void
    {
        $this->folder = Program::folder();
        $this->database = $this->connect();
    }

    protected function tearDown(): void
    {
        Program::remove($this->folder);
    }

    public function testAFunctionIsCalledOnceForItsKey(): void
    {
        $once = new Once(new PdoStore($this->database));
        $calls = 0;
        $count = static function () use (&$calls): void {
            $calls++;
        };
        self::assertTrue($once->run('a', 60, $count));
        self::assertFalse($once->run('a', 60, $count));
        self::assertFalse((new Once(new PdoStore($this->connect())))->run('a', 60, $count));
        self::assertSame(1, $calls);
        self::assertTrue($once->run('b', 60, $count));
    }

    public function testWhatFailedMayBeTriedAgainAtOnce(): void
    {
        $once = new Once(new PdoStore($this->database));
        try {
            $once->run('a', 60, static fn () => throw new \DomainException('no'));
            self::fail('it did not come through');
        } catch (\DomainException) {
            self::assertTrue($once->run('a', 60, static fn () => 1));
        }
    }

    public function testWhileOneIsAtItAnotherIsTold(): void
    {
        $once = new Once(new PdoStore($this->database));
        $other = new Once(new PdoStore($this->connect()));
        $once->run('a', 60, function () use ($other): void {
            try {
                $other->run('a', 60, static fn () => self::fail('it ran twice'));
                self::fail('it was not told');
            } catch (Busy $error) {
                self::assertSame("Another worker is at 'a'.", $error->getMessage());
            }
        });
    }

    public function testAClaimThatNobodyMarkedEndsWithItsLease(): void
    {
        $store = new PdoStore($this->database);
        self::assertTrue($store->claim('a', 'dead', 0.05));
        $ran = false;
        Program::wait(static function () use ($store, &$ran): bool {
            try {
                return (new Once($store))->run('a', 60, static function () use (&$ran): void {
                    $ran = true;
                });
            } catch (Busy) {
                return false;
            }
        }, 'the lease to end');
        self::assertTrue($ran);
    }

    public function testALateMarkDoesNotTakeAnothersClaimAway(): void
    {
        $store = new PdoStore($this->database);
        $store->claim('a', 'late', 0.001);
        Program::wait(static function () use ($store): bool {
            try {
                return $store->claim('a', 'new', 60);
            } catch (Busy) {
                return false;
            }
        }, 'the lease to end');
        $store->mark('a', 'late', 60);
        $store->release('a', 'late');
        $this->expectException(Busy::class);
        $store->claim('a', 'third', 60);
    }

    public function testALateMarkOfAClaimThatWasClearedAwayHolds(): void
    {
        $store = new PdoStore($this->database);
        $store->claim('a', 'late', 60);
        $this->database->exec('DELETE FROM kestrel_stack_once');
        $store->mark('a', 'late', 60);
        self::assertFalse($store->claim('a', 'next', 60));
    }

    public function testAMarkIsForgottenAfterItsTime(): void
    {
        $once = new Once(new PdoStore($this->database));
        $once->run('a', 0.02, static fn () => 1);
        Program::wait(static fn (): bool => $once->run('a', 60, static fn () => 1), 'the mark to end');
        self::assertFalse($once->run('a', 60, static fn () => 1));
    }

    public function testOfManyWorkersAtTheSameTimeOneRunsIt(): void
    {
        $code = 'require $argv[1]; $once = new KestrelStack\Queue\Once(new KestrelStack\Queue\PdoStore(new PDO($argv[2])));'
            . 'while (!file_exists($argv[3])) { usleep(500); clearstatcache(); }'
            . 'for ($key = 0; $key < 20; $key++) { try {'
            . ' $once->run("k$key", 60, function () use ($key) { echo "ran $key\n"; usleep(2000); });'
            . '} catch (KestrelStack\Queue\Errors\Busy) { } } echo "ends\n";';
        $workers = [];
        for ($number = 0; $number < 4; $number++) {
            $workers[] = new Program([
                PHP_BINARY, '-r', $code, '--',
                dirname(__DIR__, 2) . '/autoload.php', "sqlite:$this->folder/once.db", "$this->folder/go",
            ]);
        }
        touch("$this->folder/go");
        $said = '';
        foreach ($workers as $worker) {
            $worker->waitUntil(static fn (): bool => str_contains($worker->log(), "ends\n"), 'the worker to end');
            $said .= $worker->log();
        }
        preg_match_all('/^ran ([0-9]+)$/m', $said, $ran);
        $ran = array_map(intval(...), $ran[1]);
        sort($ran);
        self::assertSame(range(0, 19), $ran);
    }

    public function testPythonAndPhpShareAStore(): void
    {
        $code = 'import sys; from kestrel_stack.queue.once import Once, SqliteStore; '
            . 'print(Once(SqliteStore(sys.argv[1])).run(sys.argv[2], 60, lambda: None))';
        $python = function (string $key) use ($code): string {
            $source = escapeshellarg(dirname(__DIR__, 3) . '/src');
            $file = escapeshellarg("$this->folder/once.db");
            return trim((string) shell_exec("PYTHONPATH=$source python3 -c " . escapeshellarg($code) . " $file $key 2>&1"));
        };
        $once = new Once(new PdoStore($this->database));
        self::assertTrue($once->run('php', 60, static fn () => 1));
        self::assertSame('False', $python('php'));
        self::assertSame('True', $python('python'));
        self::assertFalse($once->run('python', 60, static fn () => 1));
    }

    public function testAnOpenTransactionIsRefusedSinceItsClaimWouldBeSeenByNobody(): void
    {
        $this->database->beginTransaction();
        $this->expectException(StoreFailed::class);
        $this->expectExceptionMessage('has a transaction open');
        (new Once(new PdoStore($this->database)))->run('a', 60, static fn () => self::fail('it ran'));
    }

    public function testAStoreThatCannotBeUsedIsSaidAndNothingRuns(): void
    {
        foreach ([\PDO::ERRMODE_EXCEPTION, \PDO::ERRMODE_SILENT] as $mode) {
            $database = $this->connect();
            $database->exec('CREATE TABLE kestrel_stack_once (other INT)');
            $database->setAttribute(\PDO::ATTR_ERRMODE, $mode);
            try {
                (new Once(new PdoStore($database)))->run('a', 60, static fn () => self::fail('it ran'));
                self::fail('it was not said');
            } catch (StoreFailed $error) {
                self::assertStringContainsString('kestrel_stack_once', $error->getMessage());
                $database->exec('DROP TABLE kestrel_stack_once');
            }
        }
    }

    public function testWrongKeysAndTimesAreRefused(): void
    {
        $once = new Once(new PdoStore($this->database));
        $calls = [
            static fn () => $once->run('', 60, static fn () => 1),
            static fn () => $once->run(str_repeat('x', 201), 60, static fn () => 1),
            static fn () => $once->run("\xff", 60, static fn () => 1),
            static fn () => $once->run('a', 0, static fn () => 1),
            static fn () => $once->run('a', NAN, static fn () => 1),
            fn () => new Once(new PdoStore($this->database), -1),
        ];
        foreach ($calls as $call) {
            try {
                $call();
                self::fail('it was taken');
            } catch (\ValueError $error) {
                self::assertStringContainsString('must be', $error->getMessage());
            }
        }
        self::assertTrue($once->run(str_repeat('é', 200), 60, static fn () => 1));
    }

    private function connect(): \PDO
    {
        return new \PDO("sqlite:$this->folder/once.db");
    }
}
