<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\MemcachedClient;
use KestrelStack\Queue\Server;
use PHPUnit\Framework\TestCase;

/** The extension's own options. What it does on the wire is in ClientTest. */
final class MemcachedClientTest extends TestCase
{
    public function testTheExtensionsOwnOptionsArePassedOn(): void
    {
        $server = new Server('127.0.0.1', 1);
        $client = new MemcachedClient($server, options: [\Memcached::OPT_SOCKET_RECV_SIZE => 65536]);
        self::assertFalse($client->option(\Memcached::OPT_COMPRESSION));
        self::assertSame(1, $client->option(\Memcached::OPT_TCP_NODELAY));
        self::assertGreaterThanOrEqual(65536, $client->option(\Memcached::OPT_SOCKET_RECV_SIZE));
        $slow = new MemcachedClient($server, options: [\Memcached::OPT_TCP_NODELAY => false]);
        self::assertSame(0, $slow->option(\Memcached::OPT_TCP_NODELAY));
    }

    public static function harmful(): array
    {
        return [
            'the binary protocol' => [\Memcached::OPT_BINARY_PROTOCOL, true, 'OPT_BINARY_PROTOCOL'],
            'no replies' => [\Memcached::OPT_NOREPLY, true, 'OPT_NOREPLY'],
            'buffered writes' => [\Memcached::OPT_BUFFER_WRITES, true, 'OPT_BUFFER_WRITES'],
            'compression' => [\Memcached::OPT_COMPRESSION, true, 'OPT_COMPRESSION'],
            'a prefix' => [\Memcached::OPT_PREFIX_KEY, 'x', 'OPT_PREFIX_KEY'],
            'a poll timeout' => [\Memcached::OPT_POLL_TIMEOUT, 5000, 'OPT_POLL_TIMEOUT'],
        ];
    }

    /** @dataProvider harmful */
    public function testAnOptionThatWouldBreakTheClientIsRefused(int $option, mixed $value, string $name): void
    {
        $this->expectException(\ValueError::class);
        $this->expectExceptionMessage("The option $name cannot be set");
        new MemcachedClient(new Server('127.0.0.1', 1), options: [$option => $value]);
    }

    public function testAnOptionThatSaysWhatTheClientWantsIsTaken(): void
    {
        $client = new MemcachedClient(new Server('127.0.0.1', 1), options: [\Memcached::OPT_COMPRESSION => false]);
        self::assertFalse($client->option(\Memcached::OPT_COMPRESSION));
    }
}
