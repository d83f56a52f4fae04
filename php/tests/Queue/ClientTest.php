<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Client;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\KestrelQueue;
use KestrelStack\Queue\MemcachedClient;
use KestrelStack\Queue\Server;
use KestrelStack\Queue\StreamClient;
use KestrelStack\Tests\Support\Broker;
use KestrelStack\Tests\Support\Program;
use KestrelStack\Tests\Support\ScriptedServer;
use PHPUnit\Framework\TestCase;

/** Both clients against the embedded broker, and against servers that misbehave. */
final class ClientTest extends TestCase
{
    private const CLIENTS = ['stream' => StreamClient::class, 'memcached' => MemcachedClient::class];

    private static Broker $broker;
    private static int $number = 0;

    public static function setUpBeforeClass(): void
    {
        self::$broker = new Broker(['queues' => ['tiny' => ['max_items' => 1]]]);
    }

    public static function clients(): array
    {
        return array_map(static fn (string $class): array => [$class], self::CLIENTS);
    }

    /** @dataProvider clients */
    public function testItemsComeBackByteForByte(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $allBytes = implode('', array_map(chr(...), range(0, 255)));
        $items = ['', "\r\nEND\r\n", $allBytes, 'a:1:{i:0;s:1:"x";}', '42', str_repeat('aaaa', 5000), random_bytes(3_000_000)];
        foreach ($items as $item) {
            $client->set($queue, $item);
        }
        self::assertSame(count($items), $client->items($queue));
        foreach ($items as $item) {
            self::assertTrue($client->get($queue) === $item, 'an item came back changed');
        }
        self::assertNull($client->get($queue));
        self::assertSame(1, $client->connection());
    }

    /** @dataProvider clients */
    public function testAReservedItemIsConfirmedAndTheNextReservedInOneCall(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->set($queue, 'two');
        self::assertSame('one', $client->get($queue, open: true));
        self::assertSame('two', $client->get($queue, 0.2, open: true, close: true, sameConnection: true));
        self::assertSame('1', $client->stats()["queue_{$queue}_open_transactions"]);
        $client->closeRead($queue);
        self::assertSame('0', $client->stats()["queue_{$queue}_open_transactions"]);
        self::assertSame(0, $client->items($queue));
    }

    /** @dataProvider clients */
    public function testAnAbortedItemIsTheHeadAgainAndPeekLeavesIt(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->set($queue, 'two');
        $client->get($queue, open: true);
        $client->abortRead($queue);
        self::assertSame('one', $client->get($queue, peek: true));
        self::assertSame('one', $client->get($queue));
    }

    /** @dataProvider clients */
    public function testADroppedConnectionGivesItsItemBack(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->get($queue, open: true);
        $client->disconnect();
        $other = new StreamClient(self::$broker->server());
        Program::wait(static fn (): bool => $other->items($queue) === 1, 'the item to come back');
        self::assertFalse($client->connected());
    }

    public function testAProgramThatHoldsACopyOfTheSocketDoesNotKeepTheItem(): void
    {
        $client = new StreamClient(self::$broker->server());
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->get($queue, open: true);
        $heir = new Program(['sleep', '60']);
        $client->disconnect();
        $other = new StreamClient(self::$broker->server());
        Program::wait(static fn (): bool => $other->items($queue) === 1, 'the item to come back');
        self::assertTrue($heir->runs());
    }

    /** @dataProvider clients */
    public function testACloseOnAnotherConnectionThanTheOneThatOpenedIsNeverSent(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->get($queue, open: true);
        $client->disconnect();
        $calls = [
            static fn () => $client->closeRead($queue),
            static fn () => $client->abortRead($queue),
            static fn () => $client->get($queue, open: true, close: true, sameConnection: true),
        ];
        foreach ($calls as $call) {
            try {
                $call();
                self::fail('it was answered');
            } catch (ReservationLost $error) {
                self::assertStringContainsString('is gone', $error->getMessage());
            }
        }
    }

    /** @dataProvider clients */
    public function testAFullQueueIsSaid(string $class): void
    {
        $client = self::client($class);
        $client->delete('tiny');
        $client->set('tiny', 'one');
        $this->expectException(QueueFull::class);
        $this->expectExceptionMessage('refused the item for tiny');
        $client->set('tiny', 'two');
    }

    /** @dataProvider clients */
    public function testADeletedQueueIsEmptyAndTheServerSaysItsVersion(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one');
        $client->delete($queue);
        self::assertSame(0, $client->items($queue));
        self::assertSame('2.4.1', $client->version());
    }

    /** @dataProvider clients */
    public function testAnItemThatExpiresIsDropped(string $class): void
    {
        $client = self::client($class);
        $queue = self::queue();
        $client->set($queue, 'one', 0.2);
        Program::wait(static fn (): bool => $client->get($queue, peek: true) === null, 'the item to expire');
        $this->expectException(\ValueError::class);
        $client->set($queue, 'one', 1_000_000);
    }

    /** @dataProvider clients */
    public function testNoIllegalNameReachesTheServer(string $class): void
    {
        $client = self::client($class);
        foreach (['a b', "a\r\nflush_all", 'a/open', 'a+b', 'a.b', 'a~b', ''] as $name) {
            foreach ([static fn () => $client->set($name, 'x'), static fn () => $client->get($name)] as $call) {
                try {
                    $call();
                    self::fail("it was sent: $name");
                } catch (InvalidQueueName) {
                    self::assertSame(0, $client->connection());
                }
            }
        }
    }

    /** @dataProvider clients */
    public function testAServerThatIsAwayIsSaidInBoundedTimeAndFoundAgain(string $class): void
    {
        $broker = new Broker();
        $client = self::client($class, $broker->server());
        $client->set('a', 'one');
        $broker->kill();
        for ($try = 0; $try < 5; $try++) {
            try {
                $client->set('a', 'two');
                self::fail('it was stored');
            } catch (ServerUnavailable $error) {
                self::assertStringContainsString((string) $broker->server(), $error->getMessage());
                self::assertStringNotContainsString("\n", $error->getMessage());
            }
        }
        $broker->start();
        $client->set('a', 'two');
        self::assertSame(2, $client->items('a'));
    }

    /** @dataProvider clients */
    public function testAHeldItemWhoseServerRestartedIsLostAndNotConfirmed(string $class): void
    {
        $broker = new Broker();
        $make = static fn (Server $server): Client => self::client($class, $server);
        $queue = new KestrelQueue('a', [$broker->server()], connect: $make);
        $writer = new StreamClient($broker->server());
        $writer->set('a', 'one');
        $held = $queue->reserve(0);
        self::assertSame('one', $held->body);
        $broker->kill();
        $broker->start();
        // Also when something else was written in between, which connects anew.
        self::client($class, $broker->server())->set('b', 'x');
        try {
            $queue->done($held);
            self::fail('it was confirmed on another connection');
        } catch (ReservationLost) {
            self::assertSame('one', $queue->reserve(1)->body);
        }
    }

    /** @dataProvider clients */
    public function testTheEndOfTheConnectionAtAConfirmationIsALostReservation(string $class): void
    {
        $server = new ScriptedServer([["VALUE a 0 3\r\none\r\nEND\r\n"], ["END\r\n", "END\r\n"]]);
        $queue = new KestrelQueue('a', [$server->server], connect: static fn ($one) => self::client($class, $one));
        $held = $queue->reserve(0);
        try {
            $queue->reserve(0, $held);
            self::fail('it was confirmed');
        } catch (ReservationLost) {
            self::assertSame(['get a/open'], $server->requests());
        }
    }

    public static function refusals(): array
    {
        $cases = [];
        foreach (self::CLIENTS as $name => $class) {
            foreach (['get', 'set'] as $command) {
                $cases["$name, $command"] = [$class, $command];
            }
        }
        return $cases;
    }

    /** @dataProvider refusals */
    public function testAServerThatRefusesIsNotTakenForAnEmptyQueue(string $class, string $command): void
    {
        $server = new ScriptedServer([["SERVER_ERROR read-only\r\n"], ["END\r\n"]]);
        $client = self::client($class, $server->server);
        $this->expectException(ServerUnavailable::class);
        $this->expectExceptionMessageMatches('/refused with .*read-only.*its status is not UP/');
        $command === 'get' ? $client->get('a', open: true) : $client->set('a', 'x');
    }

    public function testAQuiescentServerIsNotTakenForAnEmptyQueue(): void
    {
        $broker = new Broker();
        $clients = array_map(static fn (string $class): Client => self::client($class, $broker->server()), self::CLIENTS);
        foreach ($clients as $client) {
            $client->set('a', 'one');
        }
        self::tell($broker->server(), 'status QUIESCENT');
        foreach ($clients as $client) {
            foreach ([static fn () => $client->get('a', open: true), static fn () => $client->set('a', 'x')] as $call) {
                try {
                    $call();
                    self::fail('it was answered');
                } catch (ServerUnavailable $error) {
                    self::assertStringContainsString('its status is not UP', $error->getMessage());
                }
            }
        }
    }

    public static function nonsense(): array
    {
        return [
            'another word' => ["HELLO\r\n"],
            'a length that is no number' => ["VALUE a 0 x\r\n"],
            'a length of nonsense' => ["VALUE a 0 99999999999\r\n"],
            'more data than announced' => ["VALUE a 0 1\r\nxyz\r\nEND\r\n"],
            'no end' => ["VALUE a 0 1\r\nx\r\nSTORED\r\n"],
            'bytes' => ["\0\xff\r\n"],
            'an error' => ["ERROR\r\n"],
            'a line without end' => [str_repeat('x', 80_000)],
        ];
    }

    /** @dataProvider nonsense */
    public function testNonsenseIsAnErrorOnOneLineAndDropsTheConnection(string $answer): void
    {
        $server = new ScriptedServer([[$answer], ["END\r\n"]]);
        $client = new StreamClient($server->server);
        try {
            $client->get('a');
            self::fail('it was taken');
        } catch (ProtocolError $error) {
            self::assertMatchesRegularExpression('/\A[\x20-\x7E…]{1,300}\z/u', $error->getMessage());
        }
        self::assertFalse($client->connected());
        self::assertNull($client->get('a'));
    }

    /** @dataProvider clients */
    public function testNonsenseIsNeverAnItemWithEitherClient(string $class): void
    {
        foreach (["HELLO\r\n", "VALUE a 0 x\r\n", "VALUE a 0 5\r\nx"] as $answer) {
            $server = new ScriptedServer([[$answer]]);
            try {
                self::client($class, $server->server)->get('a', open: true);
                self::fail('it was taken: ' . $answer);
            } catch (ProtocolError | ServerUnavailable $error) {
                self::assertStringContainsString((string) $server->server, $error->getMessage());
            }
        }
    }

    /** @dataProvider clients */
    public function testAServerThatSaysNothingCostsOnlyTheTimeLimit(string $class): void
    {
        $server = new ScriptedServer([[null], [null]]);
        $client = new $class($server->server, 1.0, 0.1);
        foreach ([static fn () => $client->get('a'), static fn () => $client->set('a', 'x')] as $call) {
            try {
                $call();
                self::fail('it was answered');
            } catch (ServerUnavailable $error) {
                self::assertStringContainsString('timed out', $error->getMessage());
            }
        }
    }

    public function testAnAnswerInPiecesCountsAsAWhole(): void
    {
        $server = new ScriptedServer([[['VAL', "UE a 0 5\r", "\nab", "cde\r\n", "EN", "D\r\n"], str_split(str_repeat('x', 40))]]);
        $client = new StreamClient($server->server, 1.0, 5.0);
        self::assertSame('abcde', $client->get('a'));
        // Each piece comes in time, the whole does not.
        $client->limit(1.0, 0.3);
        $this->expectException(ServerUnavailable::class);
        $this->expectExceptionMessage('timed out');
        $client->get('a');
    }

    public function testALateAnswerIsNotTakenForTheNextOne(): void
    {
        $server = new ScriptedServer([[['', '', '', '', '', '', "VALUE a 0 4\r\nlate\r\nEND\r\n"]], ["VALUE b 0 3\r\nnew\r\nEND\r\n"]]);
        $client = new StreamClient($server->server, 1.0, 0.1);
        try {
            $client->get('a');
            self::fail('it came in time');
        } catch (ServerUnavailable) {
            $client->limit(1.0, 5.0);
            self::assertSame('new', $client->get('b'));
        }
    }

    public function testAnItemThatWaitsLongerThanTheReadTimeoutIsStillReceived(): void
    {
        foreach (self::CLIENTS as $class) {
            $server = new ScriptedServer([[['', '', '', '', '', '', "VALUE a 0 1\r\nx\r\nEND\r\n"]]]);
            $client = new $class($server->server, 1.0, 0.2);
            self::assertSame('x', $client->get('a', 0.9, open: true));
        }
    }

    public function testAForkMakesAConnectionOfItsOwn(): void
    {
        $client = new StreamClient(self::$broker->server());
        $queue = self::queue();
        $client->set($queue, 'mine');
        $client->get($queue, open: true);
        self::inAFork(static function () use ($client, $queue): void {
            $client->set($queue, 'of the fork');
            $client->get($queue, open: true);
        });
        // What the fork held has come back with the end of its own connection.
        Program::wait(static fn (): bool => $client->items($queue) === 1, 'the item of the fork to come back');
        $client->closeRead($queue);
        self::assertSame('of the fork', $client->get($queue));
        self::assertSame(1, $client->connection());
    }

    public function testAForkMixesNothingWithMemcached(): void
    {
        $client = new MemcachedClient(self::$broker->server());
        $queue = self::queue();
        $client->set($queue, 'mine');
        $client->get($queue, open: true);
        self::inAFork(static fn () => $client->set($queue, 'of the fork'));
        try {
            $client->closeRead($queue);
        } catch (ServerUnavailable | ReservationLost) {
            // The extension in the fork has ended the connection: the item has come back.
            self::assertSame('mine', $client->get($queue));
        }
        self::assertSame('of the fork', $client->get($queue));
    }

    public function testMemcachedTriesAConnectionThatWasIdleBeforeItWritesOnIt(): void
    {
        $server = new ScriptedServer([["STORED\r\n"], ["STORED\r\n"]]);
        $client = new MemcachedClient($server->server);
        $client->set('a', 'one');
        // As if a second had gone by, in which the server closed the connection.
        (new \ReflectionProperty($client, 'used'))->setValue($client, -10.0);
        $client->set('a', 'two');
        self::assertSame(2, $client->connection());
        self::assertSame(['set a 0 0 3', 'set a 0 0 3'], $server->requests());
    }

    public function testASignalInterruptsAWaitOnlyForItsHandler(): void
    {
        $seen = 0;
        pcntl_async_signals(true);
        pcntl_signal(SIGUSR1, static function () use (&$seen): void {
            $seen++;
        });
        $server = new ScriptedServer([[['', '', '', '', "VALUE a 0 1\r\nx\r\nEND\r\n"]]]);
        $client = new StreamClient($server->server);
        $sender = new Program(['sh', '-c', 'sleep 0.05; kill -USR1 ' . getmypid()]);
        self::assertSame('x', $client->get('a', 1));
        Program::wait(static fn (): bool => $seen === 1, 'the signal');
        pcntl_signal(SIGUSR1, SIG_DFL);
        pcntl_async_signals(false);
        self::assertFalse($sender->runs());
    }

    public function testAHostThatDoesNotExistIsSaid(): void
    {
        $this->expectException(ServerUnavailable::class);
        $this->expectExceptionMessageMatches('/\Anohost.invalid:22133 is not reachable: [^()]+\.\z/');
        (new StreamClient(new Server('nohost.invalid')))->get('a');
    }

    private static function client(string $class, ?Server $server = null): Client
    {
        return new $class($server ?? self::$broker->server());
    }

    private static function queue(): string
    {
        return 'q' . ++self::$number . '_' . bin2hex(random_bytes(4));
    }

    private static function inAFork(callable $function): void
    {
        $pid = pcntl_fork();
        if ($pid === 0) {
            $signal = SIGKILL;
            try {
                $function();
                $signal = SIGUSR1;
            } finally {
                // Without PHPUnit's own end.
                posix_kill(posix_getpid(), $signal);
            }
        }
        pcntl_waitpid($pid, $status);
        self::assertSame(SIGUSR1, pcntl_wtermsig($status));
    }

    private static function tell(Server $server, string $line): void
    {
        $stream = stream_socket_client("tcp://$server");
        fwrite($stream, "$line\r\n");
        self::assertSame("END\r\n", fgets($stream));
    }
}
