<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;

/**
 * A queue kept by Kestrel, on one or several servers.
 *
 * One connection reads: `get <queue>/t=…/close/open` confirms the last item and reserves the next. Everything that is
 * written goes over a second connection, to another server when one refuses. An item is confirmed only on the
 * connection that reserved it: on another one Kestrel would answer the same and confirm nothing (source: observed on
 * Kestrel 2.4.1).
 */
final class KestrelQueue implements JobQueue
{
    /** Seconds that a worker stays with a server that always has work, while others may be waiting for a visit. */
    public const DWELL = 10.0;
    /** Seconds that one server gets to take a record or a retry; with TERM at hand nobody waits for long. */
    public const WRITE_TIMEOUT = 3.0;
    /** Seconds between two looks for pings at the same server. */
    public const PING_PAUSE = 1.0;
    /** Seconds that one look may take while there are pings: a thousand of them must not hold up the jobs. */
    public const PING_TIME = 0.05;
    /** Seconds after which an answer that nobody took is gone. */
    public const PING_EXPIRES = 60;

    private readonly string $name;
    private readonly string $errors;
    private readonly Rotation $rotation;
    private readonly \Closure $connect;
    private Server $asked;
    private ?Client $reader = null;
    private ?Client $writer = null;
    private float $arrived = 0.0;
    private bool $empty = false;
    /** @var array<string, float> */
    private array $pingAt = [];
    private int $tickets = 0;
    private int $heldTicket = 0;
    private int $heldConnection = 0;

    /**
     * The queue `$name` (as the servers know it) on `$servers`; the visits begin at server `$start` mod N. `$errors` is
     * where `park` writes, by default the queue's error queue.
     *
     * @param non-empty-list<Server> $servers
     * @param ?\Closure(Server): Client $connect makes a client; by default a StreamClient
     */
    public function __construct(
        string $name,
        private readonly array $servers,
        int $start = 0,
        private readonly float $dwell = self::DWELL,
        ?\Closure $connect = null,
        ?string $errors = null,
    ) {
        $this->name = Names::check($name);
        $this->errors = $errors === null ? Names::errors($name) : Names::check($errors);
        $this->rotation = new Rotation($servers, $start);
        $this->asked = $this->rotation->current();
        $this->connect = $connect ?? static fn (Server $server): Client => new StreamClient($server);
    }

    public function name(): string
    {
        return $this->name;
    }

    public function server(): Server
    {
        return $this->asked;
    }

    public function serverCount(): int
    {
        return count($this->rotation);
    }

    /** In one round trip, unless it is another server's turn. */
    public function reserve(float $wait, ?Reservation $done = null): ?Reservation
    {
        if ($this->isTimeToMove()) {
            if ($done !== null) {
                $this->done($done);
                $done = null;
            }
            $this->leave();
            $this->rotation->advance();
        }
        if ($done !== null && $this->lost($done)) {
            $this->leave();
            throw new ReservationLost("The connection to $done->server was lost; the item is delivered again.");
        }
        $this->heldTicket = 0;
        $this->asked = $this->rotation->current();
        if ($this->reader === null) {
            $this->reader = ($this->connect)($this->asked);
            $this->arrived = Clock::now();
        }
        try {
            $body = $this->reader->get(
                $this->name,
                $wait,
                open: true,
                close: $done !== null,
                sameConnection: $done !== null,
            );
        } catch (ServerUnavailable | ProtocolError | ReservationLost $error) {
            $this->leave();
            $this->rotation->failed();
            if ($done !== null) {
                throw new ReservationLost($error->getMessage() . ' The item may be delivered again.');
            }
            throw $error;
        }
        $this->rotation->answered();
        $this->empty = $body === null;
        if ($body === null) {
            return null;
        }
        $this->heldTicket = ++$this->tickets;
        $this->heldConnection = $this->reader->connection();
        return new Reservation($body, $this->asked, $this->heldTicket, $this->name);
    }

    public function pause(): float
    {
        return $this->rotation->pause();
    }

    public function done(Reservation $reservation): void
    {
        if ($this->lost($reservation)) {
            $this->leave();
            throw new ReservationLost(
                "The connection to $reservation->server was lost; the item is delivered again.",
            );
        }
        $this->heldTicket = 0;
        try {
            $this->reader?->closeRead($this->name);
        } catch (ServerUnavailable | ProtocolError | ReservationLost $error) {
            $this->leave();
            throw new ReservationLost($error->getMessage() . ' The item may be delivered again.');
        }
    }

    /** To the error queue of any server, that of the item first. */
    public function park(Reservation $reservation, string $record): void
    {
        $this->write($reservation, $this->errors, $record);
    }

    /** To the delay queue of any server, that of the item first; a mover brings it back. */
    public function later(Reservation $reservation, string $body, int $delay): void
    {
        $this->write($reservation, Names::retry($this->name, $delay), $body);
    }

    public function lost(Reservation $reservation): bool
    {
        return $this->reader === null
            || $this->heldTicket !== $reservation->ticket
            || !$this->reader->connected()
            || $this->heldConnection !== $this->reader->connection();
    }

    public function stream()
    {
        return $this->reader?->stream();
    }

    public function drop(): void
    {
        $this->leave();
        $this->dropWriter();
    }

    /** Says whether the server that is read from was not looked at for pings within `PING_PAUSE`. */
    public function pingsDue(): bool
    {
        return $this->reader !== null && Clock::now() >= ($this->pingAt[(string) $this->reader->server()] ?? 0.0);
    }

    /**
     * For at most `PING_TIME` if there are many. Without one it is one question on the connection that stands already,
     * about one queue.
     */
    public function answerPings(string $host, \Closure $answer): void
    {
        $reader = $this->reader;
        if ($reader === null) {
            return;
        }
        $began = Clock::now();
        $this->pingAt[(string) $reader->server()] = $began + self::PING_PAUSE;
        $queue = Names::ping($this->name, $host);
        try {
            for ($left = $reader->items($queue); $left > 0; $left--) {
                $body = $reader->get($queue);
                if ($body === null) {
                    // They had expired. A look is what made them go, so it also removes what they were in.
                    $reader->delete($queue);
                    return;
                }
                $said = $answer($body);
                if ($said !== null) {
                    try {
                        $reader->set(Names::pingAnswers($queue), $said, self::PING_EXPIRES);
                    } catch (QueueFull) {
                        // Then whoever asked asks again.
                    }
                }
                if (Clock::now() - $began > self::PING_TIME) {
                    return;
                }
            }
        } catch (ServerUnavailable | ProtocolError) {
            $this->leave();
        }
    }

    private function write(Reservation $reservation, string $queue, string $data): void
    {
        if ($this->lost($reservation)) {
            throw new ReservationLost("The connection to $reservation->server was lost.");
        }
        $usual = $this->writer === null ? $reservation->server : $this->writer->server();
        $servers = $this->servers;
        usort($servers, static fn (Server $a, Server $b): int => ($a != $usual) <=> ($b != $usual));
        $failures = [];
        $full = true;
        foreach ($servers as $server) {
            if ($this->writer === null || $this->writer->server() != $server) {
                $this->dropWriter();
                $this->writer = ($this->connect)($server);
                $this->writer->limit(Client::CONNECT_TIMEOUT, self::WRITE_TIMEOUT);
            }
            try {
                $this->writer->set($queue, $data);
                return;
            } catch (QueueFull | ServerUnavailable | ProtocolError $error) {
                $failures[] = $error->getMessage();
                $full = $full && $error instanceof QueueFull;
            }
        }
        $said = implode(' ', $failures);
        throw $full ? new QueueFull($said) : new ServerUnavailable($said);
    }

    private function isTimeToMove(): bool
    {
        if (count($this->rotation) === 1 || $this->reader === null) {
            return false;
        }
        return $this->empty || Clock::now() - $this->arrived >= $this->dwell;
    }

    private function leave(): void
    {
        $this->reader?->disconnect();
        $this->reader = null;
        $this->heldTicket = 0;
        $this->empty = false;
    }

    private function dropWriter(): void
    {
        $this->writer?->disconnect();
        $this->writer = null;
    }
}
