<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidServer;

/** One queue server's address. */
final class Server implements \Stringable
{
    /** Kestrel's memcache port. */
    public const DEFAULT_PORT = 22133;

    public function __construct(public readonly string $host, public readonly int $port = self::DEFAULT_PORT)
    {
    }

    public function __toString(): string
    {
        return $this->address() . ':' . $this->port;
    }

    /** Returns the host as it stands before a port: an IPv6 address in brackets. */
    public function address(): string
    {
        return str_contains($this->host, ':') ? "[$this->host]" : $this->host;
    }

    /**
     * Returns the servers of `"host:port,host:port"` or of a list.
     *
     * Without a port it is `$defaultPort`; an IPv6 address stands in brackets.
     *
     * @param string|iterable<string|self> $servers
     * @return non-empty-list<self>
     * @throws InvalidServer naming the wrong one
     */
    public static function parse(string|iterable $servers, int $defaultPort = self::DEFAULT_PORT): array
    {
        $found = [];
        foreach (is_string($servers) ? explode(',', $servers) : $servers as $part) {
            $server = $part instanceof self ? $part : self::one($part, $defaultPort);
            if (isset($found[(string) $server])) {
                throw new InvalidServer("The server $server is listed twice.");
            }
            $found[(string) $server] = $server;
        }
        if ($found === []) {
            throw new InvalidServer('No server is given; write host:port, for example 127.0.0.1:22133.');
        }
        return array_values($found);
    }

    private static function one(mixed $text, int $defaultPort): self
    {
        $pattern = '/\A(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\z/';
        if (!is_string($text) || !preg_match($pattern, trim($text), $match)) {
            $shown = is_string($text) ? Text::quote($text) : Text::show($text);
            throw new InvalidServer("$shown is not a server; write host:port, for example 127.0.0.1:22133.");
        }
        $port = (int) ($match[2] ?? $defaultPort);
        if ($port < 1 || $port > 65535) {
            throw new InvalidServer("The server '$text' has no such port; ports go from 1 to 65535.");
        }
        return new self(trim($match[1], '[]'), $port);
    }
}
