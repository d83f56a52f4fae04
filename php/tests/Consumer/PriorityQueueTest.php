<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\PriorityQueue;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\KestrelQueue;
use KestrelStack\Queue\Server;
use KestrelStack\Queue\StreamClient;
use KestrelStack\Tests\Support\Broker;
use PHPUnit\Framework\TestCase;

/** On the embedded broker. */
final class PriorityQueueTest extends TestCase
{
    private static ?Broker $broker = null;
    private StreamClient $client;
    private PriorityQueue $queue;

    public static function setUpBeforeClass(): void
    {
        self::$broker = new Broker();
    }

    public static function tearDownAfterClass(): void
    {
        self::$broker = null;
    }

    protected function setUp(): void
    {
        $servers = [self::$broker->server()];
        $this->client = new StreamClient($servers[0]);
        foreach (['first', 'second', 'second_errors', 'second_retry_5'] as $name) {
            $this->client->delete($name);
        }
        $this->queue = new PriorityQueue([new KestrelQueue('first', $servers), new KestrelQueue('second', $servers)]);
    }

    protected function tearDown(): void
    {
        $this->queue->drop();
    }

    public function testTheFirstQueueThatHasAnItemIsTakenFrom(): void
    {
        foreach (['second' => 'b', 'first' => 'a'] as $name => $item) {
            $this->client->set($name, "{$item}1");
            $this->client->set($name, "{$item}2");
        }
        $taken = [];
        $done = null;
        while (($done = $this->queue->reserve(0.01, $done)) !== null) {
            $taken[] = "$done->queue $done->body";
        }
        self::assertSame(['first a1', 'first a2', 'second b1', 'second b2'], $taken);
        self::assertSame(0, $this->client->items('first') + $this->client->items('second'));
        self::assertSame('first,second', $this->queue->name());
    }

    public function testAnItemOfALaterQueueIsPostponedAndParkedThere(): void
    {
        $this->client->set('second', 'item');
        $reservation = $this->queue->reserve(0.01);
        self::assertNotNull($reservation);
        $this->queue->park($reservation, 'record');
        $this->queue->later($reservation, 'again', 5);
        self::assertFalse($this->queue->lost($reservation));
        $this->queue->done($reservation);
        self::assertSame('record', $this->client->get('second_errors'));
        self::assertSame('again', $this->client->get('second_retry_5'));
        self::assertNull($this->queue->reserve(0.01));
    }

    public function testWhatIsDroppedIsDeliveredAgain(): void
    {
        $this->client->set('second', 'item');
        $reservation = $this->queue->reserve(0.01);
        self::assertNotNull($reservation);
        $this->queue->drop();
        self::assertTrue($this->queue->lost($reservation));
        self::assertSame('item', $this->client->get('second', 1.0));
        $this->expectException(ReservationLost::class);
        $this->queue->done($reservation);
    }

    public function testAServerThatIsAwayIsSaidOfTheQueueThatAskedIt(): void
    {
        $away = new Server('127.0.0.1', 1);
        $queue = new PriorityQueue([new KestrelQueue('first', [$away]), new KestrelQueue('second', [$away])]);
        try {
            $queue->reserve(0.01);
            self::fail('nobody answers there');
        } catch (ServerUnavailable) {
            self::assertSame('127.0.0.1:1', (string) $queue->server());
            self::assertGreaterThan(0, $queue->pause());
        }
    }
}
