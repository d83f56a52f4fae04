<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidJob;
use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\Errors\SettingsError;

/**
 * Enqueues the jobs of one tenant, from a web request or a script. It survives a fork.
 *
 *     $producer = Producer::fromSettings('acme');
 *     $producer->enqueue('HelloWorld', ['name' => 'Ada']);
 */
final class Producer
{
    /** Largest job in bytes, unless the producer is made with another limit. */
    public const MAX_BYTES = 1024 * 1024;

    public readonly string $namespace;
    private readonly Queue $store;

    /**
     * `$servers` and `$queues` are as in the settings file; `$queues` may also be plain names.
     *
     * @param string|iterable<string|Server>|Queue $servers
     * @param iterable<string|array<string, mixed>|QueueSettings> $queues
     * @throws InvalidQueueName|Errors\InvalidServer|SettingsError
     */
    public function __construct(
        string $namespace,
        public readonly string $tenant,
        string|iterable|Queue $servers = '127.0.0.1:22133',
        iterable $queues = [],
        private readonly float $timeout = Queue::TIMEOUT,
        private readonly int $maxBytes = self::MAX_BYTES,
    ) {
        $this->store = $servers instanceof Queue ? $servers : new KestrelStore($namespace, $servers, $queues);
        $this->namespace = $this->store->namespace;
    }

    /** Returns a producer on what `Queue::open` returned; both use the same connections. */
    public static function on(
        Queue $queue,
        string $tenant,
        float $timeout = Queue::TIMEOUT,
        int $maxBytes = self::MAX_BYTES,
    ): self {
        return new self($queue->namespace, $tenant, $queue, timeout: $timeout, maxBytes: $maxBytes);
    }

    /** Returns a producer for the application whose settings file is at `$path`. @throws SettingsError */
    public static function fromSettings(
        string $tenant,
        ?string $path = null,
        float $timeout = Queue::TIMEOUT,
        int $maxBytes = self::MAX_BYTES,
    ): self {
        $found = Settings::load($path);
        return new self($found->namespace, $tenant, $found->servers, $found->queues, $timeout, $maxBytes);
    }

    /**
     * Puts a job on its queue and returns the job's id.
     *
     * `$queue` is by default the job's name in snake case (`HelloWorld` goes to `hello_world`). With `$delay` it is
     * done so many seconds from now, at the earliest; only the queue's retry delays are possible.
     *
     * After ServerUnavailable it is not known whether the job was stored: enqueue it again with the same `$id`, and
     * make the job safe to be done twice.
     *
     * @param array<mixed>|\stdClass $data by names. An empty array inside of it arrives as a list: write
     *     `new \stdClass()` for an empty object.
     * @param ?array<string> $trace
     * @throws InvalidJob|InvalidQueueName before anything is sent
     * @throws QueueFull when every server refused the job
     * @throws ServerUnavailable when none took it within the time limit
     */
    public function enqueue(
        string $job,
        array|\stdClass $data = [],
        ?string $queue = null,
        ?int $delay = null,
        ?string $id = null,
        ?array $trace = null,
    ): string {
        return $this->send($this->checked($job, $data, $queue, $delay, $id, $trace));
    }

    /**
     * Calls `$transaction` with an AfterCommit that collects jobs, enqueues them when it has returned, and returns what
     * it returned. When it throws, as after a rollback, the jobs are dropped.
     *
     *     $producer->afterCommit(function (AfterCommit $jobs) use ($database): void {
     *         $database->beginTransaction();
     *         …
     *         $jobs->enqueue('PostUpload', ['upload' => 7]);
     *         $database->commit();
     *     });
     *
     * A process that dies between the commit and the end enqueues nothing: what must not be missed belongs into the
     * database, too.
     *
     * @template T
     * @param callable(AfterCommit): T $transaction
     * @return T
     * @throws QueueFull|ServerUnavailable after the commit, as `AfterCommit::flush` does
     */
    public function afterCommit(callable $transaction): mixed
    {
        $jobs = new AfterCommit($this);
        $returned = $transaction($jobs);
        $jobs->flush();
        return $returned;
    }

    /** Closes the connections; the next job opens them again. */
    public function close(): void
    {
        $this->store->close();
    }

    /** Returns a job's name as a queue's: `HelloWorld` is `hello_world`, `PDFReport` `pdf_report`. */
    public static function snakeCase(string $job): string
    {
        $text = preg_replace('/(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])/', '_', $job);
        return strtolower((string) $text);
    }

    /**
     * Returns a job that only has to be sent: its queue, id, bytes and delay.
     *
     * @internal
     * @param array<mixed>|\stdClass $data
     * @param ?array<string> $trace
     * @return array{string, string, string, ?int}
     */
    public function checked(
        string $job,
        array|\stdClass $data,
        ?string $queue,
        ?int $delay,
        ?string $id,
        ?array $trace,
    ): array {
        $described = $this->queue($job, $queue);
        if ($delay !== null) {
            Queue::checkDelay($described, $delay);
        }
        $now = Clock::unixMs();
        $envelope = new Envelope(
            job: $job,
            tenant: $this->tenant,
            data: $data,
            id: $id === null ? null : self::id($id),
            enqueuedAt: $now,
            dueAt: $delay === null ? null : $now + $delay * 1000,
            trace: $trace,
        );
        $body = $envelope->encode();
        if (strlen($body) > $this->maxBytes) {
            throw new InvalidJob(sprintf(
                'The job %s has %d bytes; at most %d are allowed. Store large data elsewhere and send its name.',
                $job,
                strlen($body),
                $this->maxBytes,
            ));
        }
        return [$described->name, $envelope->id, $body, $delay];
    }

    /**
     * @internal
     * @param array{string, string, string, ?int} $checked
     */
    public function send(array $checked): string
    {
        [$queue, $id, $body, $delay] = $checked;
        $this->store->put($queue, $body, $delay, $this->timeout);
        return $id;
    }

    private function queue(string $job, ?string $queue): QueueSettings
    {
        $queues = $this->store->queues;
        $name = $queue ?? self::snakeCase($job);
        if (isset($queues[$name])) {
            return $queues[$name];
        }
        if ($queue !== null && $queues === []) {
            // A producer that was told of no queues leaves the choice to its caller.
            return Settings::describeQueue($queue, $this->namespace);
        }
        $known = $this->store->known();
        if ($queue === null) {
            throw new InvalidJob(sprintf(
                'The job %s has no queue of its own name (%s); give queue:, one of: %s.',
                Text::quote($job),
                Text::quote($name),
                $known,
            ));
        }
        throw new InvalidJob('The queue ' . Text::quote($queue) . " is not configured; configured: $known.");
    }

    /** A UUID may be written in capitals, without dashes or in braces; it travels in one form. */
    private static function id(string $id): string
    {
        $digits = strtolower(str_replace(['urn:', 'uuid:', '{', '}', '-'], '', $id));
        if (!preg_match('/\A[0-9a-f]{32}\z/', $digits)) {
            throw new InvalidJob('The id ' . Text::quote($id) . ' is not a UUID.');
        }
        return vsprintf('%s%s-%s-%s-%s-%s%s%s', str_split($digits, 4));
    }
}
