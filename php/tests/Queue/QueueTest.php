<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\AfterCommit;
use KestrelStack\Queue\BeanstalkdClient;
use KestrelStack\Queue\BeanstalkdQueue;
use KestrelStack\Queue\Client;
use KestrelStack\Queue\Counts;
use KestrelStack\Queue\Envelope;
use KestrelStack\Queue\Errors\InvalidJob;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\InvalidServer;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\JobQueue;
use KestrelStack\Queue\KestrelStore;
use KestrelStack\Queue\MemcachedClient;
use KestrelStack\Queue\Producer;
use KestrelStack\Queue\Queue;
use KestrelStack\Queue\Reservation;
use KestrelStack\Queue\Server;
use KestrelStack\Tests\Support\Beanstalkd;
use KestrelStack\Tests\Support\Broker;
use KestrelStack\Tests\Support\Program;
use KestrelStack\Tests\Support\ScriptedServer;
use PHPUnit\Framework\TestCase;

/** One interface: every test runs on a real broker with both clients, on a real beanstalkd, and in memory. */
final class QueueTest extends TestCase
{
    private const QUEUES = [
        ['name' => 'mail', 'retry_delays' => [1, 600]],
        'hello_world',
        ['name' => 'tiny', 'max_items' => 1],
    ];

    private static Broker $broker;
    private static Beanstalkd $beanstalkd;

    public static function setUpBeforeClass(): void
    {
        self::$broker = new Broker();
        self::$beanstalkd = new Beanstalkd();
    }

    public static function places(): array
    {
        return ['kestrel' => ['kestrel'], 'memcached' => ['memcached'], 'beanstalkd' => ['beanstalkd'], 'memory' => ['memory']];
    }

    /** @dataProvider places */
    public function testAnEmptyQueueHasNothingAndGivesNothing(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        self::assertEquals(self::counts(), $store->count('mail'));
        self::assertNull($store->peek('mail'));
        self::assertNull($worker->reserve(0));
        self::assertSame(1, $worker->serverCount());
        self::assertSame(0.0, $worker->pause());
    }

    /** @dataProvider places */
    public function testItemsComeInOrderAndByteForByte(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $bodies = ["\r\n END\r\n", implode('', array_map(chr(...), range(0, 255))), 'Zoë', str_repeat('x', 60_000)];
        foreach ($bodies as $body) {
            $store->put('mail', $body);
        }
        self::assertSame($bodies[0], $store->peek('mail'));
        $got = [];
        $last = null;
        foreach ($bodies as $_) {
            $last = self::take($worker, $last);
            $got[] = $last->body;
            self::assertSame("{$store->namespace}_mail", $last->queue);
            self::assertSame($last->queue, $worker->name());
        }
        $worker->done($last);
        self::assertSame($bodies, $got);
        self::assertEquals(self::counts(), $store->count('mail'));
    }

    /** @dataProvider places */
    public function testAnItemInHandIsSeenByNobodyElse(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'one');
        $reservation = self::take($worker);
        self::assertNull($store->worker('mail')->reserve(0));
        self::assertEquals(self::counts(reserved: 1), $store->count('mail'));
        self::assertFalse($worker->lost($reservation));
        $worker->done($reservation);
        self::assertEquals(self::counts(), $store->count('mail'));
    }

    /** @dataProvider places */
    public function testWhatAWorkerDropsComesAgainFirst(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'one');
        $store->put('mail', 'two');
        $reservation = self::take($worker);
        $worker->drop();
        self::assertTrue($worker->lost($reservation));
        Program::wait(static fn (): bool => $store->count('mail')->ready === 2, 'the item to come back');
        self::assertSame('one', self::take($store->worker('mail'))->body);
    }

    /** @dataProvider places */
    public function testNothingIsConfirmedOrWrittenForAnItemThatWasDropped(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'one');
        $reservation = self::take($worker);
        $worker->drop();
        $calls = [
            static fn () => $worker->done($reservation),
            static fn () => $worker->park($reservation, 'record'),
            static fn () => $worker->later($reservation, 'one', 1),
            static fn () => $worker->reserve(0, $reservation),
        ];
        foreach ($calls as $call) {
            self::assertThrows(ReservationLost::class, $call);
        }
        Program::wait(
            static fn (): bool => $store->count('mail') == self::counts(ready: 1),
            'the item to come back, and nothing else',
        );
    }

    /** @dataProvider places */
    public function testAnItemThatIsTakenAgainDoesNotAnswerToItsOldReservation(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'one');
        $first = self::take($worker);
        $worker->drop();
        $second = self::take($worker);
        self::assertThrows(ReservationLost::class, static fn () => $worker->done($first));
        $worker->drop();
        Program::wait(static fn (): bool => $store->count('mail')->ready === 1, 'the item to come back');
        self::assertSame('one', $second->body);
    }

    /** @dataProvider places */
    public function testAParkedItemIsInTheErrorQueueAndNoMoreInItsOwn(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'one');
        $reservation = self::take($worker);
        $worker->park($reservation, 'the record');
        self::assertFalse($worker->lost($reservation));
        $worker->done($reservation);
        self::assertEquals(self::counts(parked: 1), $store->count('mail'));
        $parked = $store->parked('mail');
        $record = self::take($parked);
        self::assertSame('the record', $record->body);
        // Also while somebody looks at it.
        self::assertEquals(self::counts(parked: 1), $store->count('mail'));
        $parked->park($record, 'the same, put at the end');
        self::assertSame('the same, put at the end', self::take($parked, $record)->body);
        $store->park('mail', 'another');
        self::assertSame(2, $store->count('mail')->parked);
    }

    /** @dataProvider places */
    public function testAnItemForLaterIsKeptBack(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', (new Envelope('SendMail', 'acme'))->encode());
        $reservation = self::take($worker);
        $worker->later($reservation, Envelope::again($reservation->body, 5), 600);
        self::assertNull($worker->reserve(0, $reservation));
        self::assertEquals(self::counts(later: 1), $store->count('mail'));
    }

    /** @dataProvider places */
    public function testDelayedItemsOfMemoryAndBeanstalkdComeByThemselves(string $place): void
    {
        $store = self::store($place);
        $worker = $store->worker('mail');
        $store->put('mail', 'late', 1);
        self::assertSame([1 => 1, 600 => 0], $store->count('mail')->delayed);
        self::assertNull($worker->reserve(0));
        if ($store instanceof KestrelStore) {
            // Kestrel needs the mover.
            self::assertSame('late', self::client()->get("{$store->namespace}_mail_retry_1"));
            return;
        }
        self::assertSame('late', self::take($worker)->body);
    }

    /** @dataProvider places */
    public function testQueuesAndNamespacesDoNotMix(string $place): void
    {
        $store = self::store($place);
        $store->put('mail', 'mail');
        self::assertEquals(new Counts(), $store->count('hello_world'));
        self::assertEquals(self::counts(), self::store($place)->count('mail'));
        self::assertEquals(self::counts(ready: 1), self::store($place, $store->namespace)->count('mail'));
    }

    /** @dataProvider places */
    public function testAProducerPutsItsEnvelopesOnAnyQueue(string $place): void
    {
        $store = self::store($place);
        $producer = Producer::on($store, 'acme');
        $before = (int) (microtime(true) * 1000);
        $id = $producer->enqueue('SendMail', ['to' => 'Zoë'], queue: 'mail');
        $envelope = Envelope::decode((string) $store->peek('mail'));
        self::assertSame([$id, 'SendMail', 'acme', ['to' => 'Zoë'], 1], [
            $envelope->id,
            $envelope->job,
            $envelope->tenant,
            $envelope->data,
            $envelope->attempt,
        ]);
        self::assertGreaterThanOrEqual($before, $envelope->enqueuedAt);
        self::assertNull($envelope->dueAt);
    }

    /** @dataProvider places */
    public function testADelayedJobSaysWhenItIsDueAndOnlyConfiguredDelaysAreTaken(string $place): void
    {
        $store = self::store($place);
        $producer = Producer::on($store, 'acme');
        $producer->enqueue('SendMail', queue: 'mail', delay: 600);
        self::assertEquals(self::counts(later: 1), $store->count('mail'));
        $said = self::assertThrows(
            InvalidJob::class,
            static fn () => $producer->enqueue('SendMail', queue: 'mail', delay: 60),
        );
        self::assertStringContainsString('of the queue mail, in seconds: 1, 600.', $said);
        self::assertThrows(InvalidJob::class, static fn () => $producer->enqueue('HelloWorld', delay: 1));
        self::assertEquals(self::counts(later: 1), $store->count('mail'));
        if ($store instanceof KestrelStore) {
            $envelope = Envelope::decode((string) self::client()->get("{$store->namespace}_mail_retry_600"));
            self::assertSame($envelope->enqueuedAt + 600_000, $envelope->dueAt);
        }
    }

    /** @dataProvider places */
    public function testJobsAreEnqueuedAfterTheCommit(string $place): void
    {
        $store = self::store($place);
        $producer = Producer::on($store, 'acme');
        $returned = $producer->afterCommit(static function (AfterCommit $jobs) use ($store): string {
            $jobs->enqueue('SendMail', ['n' => 1], queue: 'mail');
            $jobs->enqueue('SendMail', ['n' => 2], queue: 'mail');
            self::assertSame(2, $jobs->left());
            self::assertSame(0, $store->count('mail')->ready);
            return 'committed';
        });
        self::assertSame('committed', $returned);
        self::assertSame(2, $store->count('mail')->ready);
        self::assertThrows(\DomainException::class, static function () use ($producer): void {
            $producer->afterCommit(static function (AfterCommit $jobs): void {
                $jobs->enqueue('SendMail', queue: 'mail');
                throw new \DomainException('rolled back');
            });
        });
        self::assertSame(2, $store->count('mail')->ready);
    }

    public function testJobsThatWereNotTakenAfterTheCommitCanBeTriedAgain(): void
    {
        $store = self::store('memory');
        $kept = null;
        $said = self::assertThrows(QueueFull::class, static function () use ($store, &$kept): void {
            Producer::on($store, 'acme')->afterCommit(static function (AfterCommit $jobs) use (&$kept): void {
                $kept = $jobs;
                $jobs->enqueue('Tiny', ['n' => 1]);
                $jobs->enqueue('Tiny', ['n' => 2]);
                $jobs->enqueue('HelloWorld');
            });
        });
        self::assertStringStartsWith('After the commit 1 of 3 jobs are not enqueued. ', $said);
        self::assertSame(1, $store->count('hello_world')->ready);
        $worker = $store->worker('tiny');
        $worker->done(self::take($worker));
        $kept->flush();
        self::assertSame(0, $kept->left());
        self::assertSame(['n' => 2], Envelope::decode((string) $store->peek('tiny'))->data);
    }

    public static function servers(): array
    {
        return ['kestrel' => [Broker::class], 'beanstalkd' => [Beanstalkd::class]];
    }

    /** @dataProvider servers */
    public function testAServerThatIsAwayIsSaidAndUsedAgainWhenItIsBack(string $class): void
    {
        $server = new $class();
        $scheme = $class === Broker::class ? 'kestrel' : 'beanstalkd';
        $store = Queue::open("$scheme://{$server->server()}/shop", self::QUEUES);
        $store->put('mail', 'one');
        $worker = $store->worker('mail');
        $held = self::take($worker);
        self::assertIsResource($worker->stream());
        $server->kill();
        Program::wait(static fn (): bool => $worker->lost($held), 'the loss to be seen');
        self::assertThrows(ReservationLost::class, static fn () => $worker->done($held));
        self::assertThrows(ServerUnavailable::class, static fn () => $worker->reserve(0));
        self::assertGreaterThan(0, $worker->pause());
        $said = self::assertThrows(ServerUnavailable::class, static fn () => $store->put('mail', 'two'));
        self::assertStringStartsWith('Not enqueued: ', $said);
        self::assertThrows(ServerUnavailable::class, static fn () => $store->count('mail'));
        $server->start();
        $store->put('mail', 'two');
        self::assertSame('one', self::take($worker)->body);
        self::assertSame(1, $store->count('mail')->ready);
    }

    public function testAnItemThatWasHeldTooLongOnBeanstalkdIsLost(): void
    {
        $store = self::store('beanstalkd');
        $name = $store->name('mail');
        $client = new BeanstalkdClient(self::$beanstalkd->server());
        // beanstalkd 1.12 forgets about one time limit in six until that connection speaks again (observed).
        for ($round = 0; $round < 12; $round++) {
            $worker = new BeanstalkdQueue($name, self::$beanstalkd->server(), 60, "{$name}_errors");
            $client->put($name, 'short', 0, 1, 5.0);
            $held = self::take($worker);
            self::assertSame('short', $held->body);
            // Another worker gets it when its second is over.
            $other = $store->worker('mail');
            $again = $other->reserve(3);
            if ($again === null) {
                $worker->drop();
                $other->done(self::take($other));
                continue;
            }
            self::assertSame('short', $again->body);
            $said = self::assertThrows(ReservationLost::class, static fn () => $worker->done($held));
            self::assertSame('Its time was over. The item may be delivered again.', $said);
            return;
        }
        self::fail('beanstalkd never gave the item to another worker');
    }

    public function testAnItemLargerThanBeanstalkdAllowsIsRefusedAndOthersAreTaken(): void
    {
        $store = self::store('beanstalkd');
        $said = self::assertThrows(QueueFull::class, static fn () => $store->put('mail', str_repeat('x', 70_000)));
        self::assertStringContainsString('larger than the server allows', $said);
        $store->put('mail', 'small');
        self::assertSame(1, $store->count('mail')->ready);
    }

    public function testProducersSpreadOverTheServersAndPassOverThoseThatRefuse(): void
    {
        $full = new ScriptedServer(array_fill(0, 60, ["NOT_STORED\r\n"]));
        $servers = [$full->server, self::$broker->server()];
        $store = new KestrelStore('n' . bin2hex(random_bytes(5)), $servers);
        for ($number = 0; $number < 30; $number++) {
            $store->put('mail', "$number");
        }
        $asked = count($full->requests());
        self::assertSame(30, self::client()->items("{$store->namespace}_mail"));
        self::assertGreaterThan(0, $asked);
        self::assertLessThan(30, $asked);
    }

    public function testAllServersFullIsAnotherErrorThanSomeAway(): void
    {
        $full = new ScriptedServer([["NOT_STORED\r\n"], ["NOT_STORED\r\n"]]);
        $alone = new KestrelStore('shop', [$full->server]);
        self::assertThrows(QueueFull::class, static fn () => $alone->put('mail', 'x'));
        $both = new KestrelStore('shop', [$full->server, '127.0.0.1:1']);
        $said = self::assertThrows(ServerUnavailable::class, static fn () => $both->put('mail', 'x'));
        self::assertStringContainsString('127.0.0.1:1 is not reachable', $said);
        self::assertStringContainsString('refused the item', $said);
    }

    public function testSilentServersShareTheTimeLimitAndTheLastMayStillTakeTheJob(): void
    {
        $silent = new ScriptedServer([[null], [null], [null]]);
        $store = new KestrelStore('n' . bin2hex(random_bytes(5)), [$silent->server, self::$broker->server()]);
        for ($number = 0; $number < 4; $number++) {
            $store->put('mail', 'x', timeout: 1.0);
        }
        self::assertSame(4, self::client()->items("{$store->namespace}_mail"));
    }

    public function testAWorkerVisitsEveryServerInTurnAndWritesWhereItIsTaken(): void
    {
        $namespace = 'n' . bin2hex(random_bytes(5));
        $other = new Broker(['queues' => ["{$namespace}_mail_errors" => ['max_items' => 1]]]);
        $servers = [self::$broker->server(), $other->server()];
        $store = new KestrelStore($namespace, $servers, [['name' => 'mail']]);
        $parts = array_map(static fn (Server $server): KestrelStore => new KestrelStore($namespace, [$server]), $servers);
        foreach ($parts as $number => $part) {
            $part->put('mail', "on $number");
        }
        $worker = $store->worker('mail', 3);
        self::assertSame(2, $worker->serverCount());
        $first = self::take($worker);
        self::assertSame('on 1', $first->body);
        self::assertEquals($servers[1], $worker->server());
        foreach (['one record', 'one more'] as $record) {
            $worker->park($first, $record);
        }
        self::assertSame('one record', self::take($parts[1]->parked('mail'))->body);
        self::assertSame('one more', self::take($parts[0]->parked('mail'))->body);
        $second = self::take($worker, $first);
        self::assertSame('on 0', $second->body);
        self::assertEquals(self::$broker->server(), $second->server);
        $worker->done($second);
        self::assertEquals([0, 0], [$store->count('mail')->ready, $store->count('mail')->reserved]);
    }

    public static function wrongAddresses(): array
    {
        return [
            'no scheme' => ['127.0.0.1/shop', InvalidServer::class, 'is not the address of a queue'],
            'no namespace' => ['kestrel://127.0.0.1', InvalidServer::class, 'is not the address of a queue'],
            'an empty namespace' => ['kestrel://127.0.0.1/', InvalidQueueName::class, 'The namespace is empty.'],
            'no host' => ['kestrel:///shop', InvalidServer::class, 'is not the address of a queue'],
            'an unknown scheme' => ['redis://h/shop', InvalidServer::class, 'kestrel://, beanstalkd://, memory://'],
            'a bad host' => ['kestrel://h h/shop', InvalidServer::class, "'h h' is not a server"],
            'a bad port' => ['kestrel://h:99999/shop', InvalidServer::class, 'ports go from 1 to 65535'],
            'twice the same' => ['kestrel://h,h/shop', InvalidServer::class, 'is listed twice'],
            'two beanstalkds' => ['beanstalkd://h,i/shop', InvalidServer::class, 'Only one beanstalkd server'],
            'a bad namespace' => ['memory://x/a.b', InvalidQueueName::class, "may hold only"],
        ];
    }

    /** @dataProvider wrongAddresses */
    public function testAWrongAddressIsRefusedInOneLine(string $url, string $error, string $said): void
    {
        $message = self::assertThrows($error, static fn () => Queue::open($url));
        self::assertStringContainsString($said, $message);
        self::assertStringNotContainsString("\n", $message);
    }

    public function testAQueueThatIsNotDescribedIsRefusedWhenOthersAre(): void
    {
        $store = self::store('memory');
        $said = self::assertThrows(InvalidQueueName::class, static fn () => $store->put('other', 'x'));
        self::assertSame("The queue 'other' is not configured; configured: hello_world, mail, tiny.", $said);
        $open = Queue::open('memory://x/shop');
        $open->put('other', 'x');
        self::assertSame(1, $open->count('other')->ready);
    }

    private static function store(string $place, ?string $namespace = null): Queue
    {
        $namespace ??= 'n' . bin2hex(random_bytes(6));
        if ($place === 'memcached') {
            $connect = static fn (Server $server): Client => new MemcachedClient($server);
            return new KestrelStore($namespace, [self::$broker->server()], self::QUEUES, $connect);
        }
        $where = match ($place) {
            'kestrel' => (string) self::$broker->server(),
            'beanstalkd' => (string) self::$beanstalkd->server(),
            'memory' => 'tests',
        };
        return Queue::open("$place://$where/$namespace", self::QUEUES);
    }

    private static function client(): Client
    {
        return new \KestrelStack\Queue\StreamClient(self::$broker->server());
    }

    private static function counts(int $ready = 0, int $reserved = 0, int $later = 0, int $parked = 0): Counts
    {
        return new Counts($ready, $reserved, [1 => 0, 600 => $later], $parked);
    }

    /** Reserves until there is an item; it may still be on its way back from a dropped connection. */
    private static function take(JobQueue $queue, ?Reservation $done = null): Reservation
    {
        $found = null;
        Program::wait(static function () use ($queue, &$done, &$found): bool {
            $found = $queue->reserve(0.5, $done);
            $done = null;
            return $found !== null;
        }, 'an item');
        return $found;
    }

    /** @return string the message */
    private static function assertThrows(string $class, callable $call): string
    {
        try {
            $call();
        } catch (\Throwable $error) {
            self::assertInstanceOf($class, $error);
            return $error->getMessage();
        }
        self::fail("$class was not thrown");
    }
}
