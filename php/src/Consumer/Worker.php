<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use KestrelStack\Queue\Backoff;
use KestrelStack\Queue\Envelope;
use KestrelStack\Queue\Errors\InvalidEnvelope;
use KestrelStack\Queue\Errors\ProtocolError;
use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ReservationLost;
use KestrelStack\Queue\Errors\ServerUnavailable;
use KestrelStack\Queue\JobQueue;
use KestrelStack\Queue\ParkedRecord;
use KestrelStack\Queue\Reservation;

/**
 * The parent of a worker: it takes items, has its child do them, and confirms, parks or postpones each one.
 *
 * It works until it is told to stop or a limit is reached.
 */
final class Worker
{
    /** Seconds that a server is asked to wait for an item. TERM is heeded after as long. */
    public const WAIT = 0.25;
    /** Seconds that a worker with a rate limit waits at a time, so that a ping is answered meanwhile. */
    public const LOOK_FOR_PINGS = 1.0;

    private const LOST = 'The connection was lost while the job ran: it will be delivered again.';

    /** The fields that every line about a job has; an event has them as tags. */
    private const OF_JOB = ['queue' => 1, 'job' => 1, 'id' => 1, 'tenant' => 1, 'attempt' => 1];

    private readonly Log $log;
    private readonly float $started;
    /** @var array<string, true> */
    private array $away = [];
    private int $jobs = 0;
    private int $empty = 0;
    private float $nextAt = 0.0;
    private ?Reservation $unconfirmed = null;

    /**
     * `$responder` answers pings between jobs and while there is none; without it nobody does.
     *
     * @param array<string, Rules> $rules those of each queue that items come from, by its name on the server
     */
    public function __construct(
        private readonly JobQueue $queue,
        private readonly array $rules,
        private readonly Runner $runner,
        private readonly Signals $signals,
        private readonly Writer $writer,
        private readonly Limits $limits,
        ?float $started = null,
        private readonly ?Reporter $reporter = null,
        private readonly ?Responder $responder = null,
    ) {
        $this->log = $writer->log();
        $this->started = $started ?? self::now();
    }

    /**
     * Work.
     *
     * @throws UnusableApp when a child cannot load the application; no item is lost then
     */
    public function run(): void
    {
        try {
            while (($reason = $this->reasonToEnd()) === null) {
                $this->turn();
            }
            $this->confirm();
            $this->log->info('worker ends', ['reason' => $reason, 'jobs' => $this->jobs]);
        } finally {
            // Whatever is still reserved goes back to its queue now, not when the application has ended.
            $this->queue->drop();
            $this->runner->stop();
        }
        while ($this->signals->stop === null && !$this->limits->once && ($left = $this->tooEarly()) > 0) {
            $this->runner->wait($left);
        }
    }

    /** Do one item, or wait for one. */
    private function turn(): void
    {
        $this->heedSignals();
        $this->reporter?->tend();
        if (!$this->childReady()) {
            return;
        }
        if ($this->responder !== null && $this->queue->pingsDue()) {
            // Nothing is reserved meanwhile: a connection that ends here must not bring a done job back.
            $this->confirm();
            $this->queue->answerPings($this->responder->host, $this->responder->answer(...));
        }
        if ($this->nextAt > 0 && ($pause = $this->nextAt - self::now()) > 0) {
            $this->confirm();
            $this->runner->wait(min($pause, self::LOOK_FOR_PINGS));
            return;
        }
        $reservation = $this->reserve();
        if ($reservation === null) {
            return;
        }
        // HUP may have come while the server was asked: this job has not begun.
        $this->heedSignals();
        if ($this->signals->stop !== null || !$this->childReady()) {
            // Not begun: it goes back to the head of its queue for the next worker.
            $this->queue->drop();
            return;
        }
        if ($this->limits->rate !== null) {
            $this->nextAt = self::now() + 1 / $this->limits->rate;
        }
        $this->jobs++;
        if ($this->settled($reservation)) {
            $this->unconfirmed = $reservation;
        }
    }

    private function reasonToEnd(): ?string
    {
        $limits = $this->limits;
        if ($this->signals->stop !== null) {
            return $this->signals->stop;
        }
        if ($limits->once && ($this->jobs > 0 || $this->empty >= $this->queue->serverCount())) {
            return 'once';
        }
        if ($limits->jobs !== null && $this->jobs >= $limits->jobs) {
            return 'max-jobs';
        }
        if ($limits->time !== null && self::now() - $this->started >= $limits->time) {
            return 'max-time';
        }
        return null;
    }

    private function heedSignals(): void
    {
        if ($this->signals->reopen) {
            $this->signals->reopen = false;
            $this->reopen();
        }
        if ($this->signals->replace) {
            $this->signals->replace = false;
            $this->confirm();
            $this->log->info('child is replaced', ['reason' => 'SIGHUP', 'child' => $this->runner->pid()]);
            $this->runner->stop();
        }
    }

    private function reopen(): void
    {
        if ($this->writer->file === null) {
            $this->log->debug("USR1: there is no log file of the worker's own to reopen");
            return;
        }
        try {
            $this->writer->reopen();
        } catch (\RuntimeException $exc) {
            $fields = ['file' => $this->writer->file, 'error' => $exc->getMessage()];
            $this->log->error('log file cannot be reopened', $fields);
            return;
        }
        $this->log->debug('log file is reopened', ['file' => $this->writer->file]);
    }

    /** Have a child stand by, starting one if need be; false when TERM came first. */
    private function childReady(): bool
    {
        $backoff = null;
        while (!$this->runner->alive()) {
            if ($this->signals->stop !== null) {
                return false;
            }
            $this->confirm();
            if ($this->runner->pid() !== null) {
                $this->log->warning('child died while idle', ['child' => $this->runner->pid()]);
                $this->runner->kill();
            }
            try {
                $this->runner->start();
            } catch (ChildFailed $exc) {
                $backoff ??= new Backoff();
                $pause = $backoff->next();
                $again = sprintf('%.1fs', $pause);
                $this->log->error('child did not start', ['error' => $exc->getMessage(), 'again_in' => $again]);
                $this->runner->wait($pause);
                continue;
            }
            $fields = ['child' => $this->runner->pid(), 'jobs' => implode(',', $this->runner->jobs())];
            $this->log->debug('child started', $fields);
        }
        return true;
    }

    /** Confirm the last item and take the next; null when there is none or no server answers. */
    private function reserve(): ?Reservation
    {
        $done = $this->unconfirmed;
        $this->unconfirmed = null;
        try {
            $reservation = $this->queue->reserve(self::WAIT, $done);
        } catch (ReservationLost $exc) {
            $this->log->warning('job may be delivered again', ['error' => $exc->getMessage()]);
            return null;
        } catch (ServerUnavailable | ProtocolError $exc) {
            $this->noteAway($exc);
            $this->runner->wait($this->queue->pause());
            return null;
        }
        if ($this->away !== []) {
            $server = (string) $this->queue->server();
            if (isset($this->away[$server])) {
                unset($this->away[$server]);
                $this->log->info('server is back', ['server' => $server]);
            }
        }
        $this->empty = $reservation !== null ? 0 : $this->empty + 1;
        return $reservation;
    }

    private function noteAway(\Exception $exc): void
    {
        $server = (string) $this->queue->server();
        $fields = ['server' => $server, 'error' => $exc->getMessage()];
        if (isset($this->away[$server])) {
            $this->log->debug('server is still away', $fields);
        } else {
            $this->away[$server] = true;
            $this->log->error('server is away', $fields);
        }
    }

    /** Confirm the last item now, when the next will not be taken at once. */
    private function confirm(): void
    {
        $done = $this->unconfirmed;
        $this->unconfirmed = null;
        if ($done === null) {
            return;
        }
        try {
            $this->queue->done($done);
        } catch (ReservationLost $exc) {
            $this->log->warning('job may be delivered again', ['error' => $exc->getMessage()]);
        }
    }

    /** Do the item, or see to it that it is tried again or parked; say whether it may be confirmed. */
    private function settled(Reservation $reservation): bool
    {
        try {
            $envelope = Envelope::decode($reservation->body);
        } catch (InvalidEnvelope $exc) {
            return $this->settledNonsense($reservation, $exc->getMessage());
        }
        $fields = [
            'queue' => $reservation->queue,
            'job' => $envelope->job,
            'id' => $envelope->id,
            'tenant' => $envelope->tenant,
            'attempt' => $envelope->attempt,
        ];
        $log = $this->log->bind($fields);
        $now = (int) (microtime(true) * 1000);
        $fields['wait_ms'] = max(0, $now - ($envelope->dueAt ?? $envelope->enqueuedAt));
        $began = self::now();
        $lost = false;
        $outcome = $this->do($reservation, $envelope, $log, $lost);
        $fields['run_ms'] = (int) round((self::now() - $began) * 1000);
        if ($outcome === null) {
            $end = $this->toldToStop();
        } elseif (!$outcome->done) {
            $end = $this->failed($reservation, $envelope, $outcome, $log);
        } else {
            $end = $lost ? new End('lost', self::LOST) : new End('done');
        }
        if ($end->outcome !== 'done' && !$this->writer->debug) {
            $this->runner->kept->write($this->writer, $log);
        }
        $fields['outcome'] = $end->outcome;
        if ($end->reason !== null) {
            $fields['reason'] = $end->reason;
            $fields['delay'] = $end->delay;
            $said = $outcome?->error['message'] ?? null;
            $fields['error'] = $said === $end->reason ? null : $said;
        }
        $this->writer->event($end->level(), 'job', $fields);
        if ($outcome !== null) {
            $this->checkChild($outcome);
        }
        return $end->outcome !== 'lost' || $end->reason === self::LOST;
    }

    private function settledNonsense(Reservation $reservation, string $reason): bool
    {
        $log = $this->log->bind(['queue' => $reservation->queue]);
        $tags = ['queue' => $reservation->queue, 'release' => $this->reporter?->release()];
        $id = $this->reporter?->report(Sentry::event('InvalidEnvelope', $reason, 'error', $tags));
        $record = (new ParkedRecord(reason: $reason, body: $reservation->body, sentryEvent: $id))->encode();
        $lost = $this->written(fn () => $this->queue->park($reservation, $record), $log);
        $end = $lost ?? new End('parked', $reason);
        $log->log($end->level(), 'job', [
            'outcome' => $end->outcome,
            'reason' => $end->reason,
            'server' => (string) $reservation->server,
            'bytes' => strlen($reservation->body),
        ]);
        return $lost === null;
    }

    /**
     * Have a child do the job; null when TERM came before it could. $lost tells whether the item was lost.
     *
     * A child that dies may have been the one that an operator or the kernel chose to kill, so that the job gets a
     * second child before it is blamed. Kestrel counts no deliveries: only the worker that holds the item can count
     * these.
     */
    private function do(Reservation $reservation, Envelope $envelope, Log $log, bool &$lost): ?Outcome
    {
        $rules = $this->rules[$reservation->queue];
        $lookAtConnection = function () use ($reservation, $log, &$lost): void {
            if (!$lost && $this->queue->lost($reservation)) {
                $lost = true;
                $log->warning('connection lost while the job runs: it will be delivered again');
            }
        };
        $this->runner->kept->clear();
        $again = $envelope->attempt <= count($rules->retryDelays);
        $run = 1;
        while (true) {
            if ($this->writer->debug) {
                $fields = ['server' => (string) $reservation->server, 'child' => $this->runner->pid()];
                $log->debug('job begins', $fields);
            }
            $outcome = $this->runner->run(
                $reservation->queue,
                $reservation->body,
                $rules->jobTimeout,
                $log,
                $this->queue->stream(...),
                $lookAtConnection,
                $this->limits->memory !== null,
                $this->reporter === null ? null : ($again ? 'warning' : 'error'),
                count($rules->retryDelays) + 1,
            );
            if (!$outcome->died || $run === 2 || $lost) {
                break;
            }
            $run++;
            $log->warning('child died, the job is run once more', ['reason' => $outcome->reason]);
            if (!$this->childReady()) {
                return null;
            }
        }
        return $outcome;
    }

    /** Write the job to where it is tried again, or park it. */
    private function failed(Reservation $reservation, Envelope $envelope, Outcome $outcome, Log $log): End
    {
        $delays = $this->rules[$reservation->queue]->retryDelays;
        $reason = $outcome->asks === 'retry' ? self::asked($outcome->delay, $delays) : $outcome->reason;
        $delay = null;
        if ($outcome->asks !== 'park' && !$outcome->died) {
            $delay = Retry::nextDelay($envelope->attempt, $delays, $outcome->delay);
        }
        if ($delay === null) {
            $event = $this->reported('error', $reservation, $envelope, $outcome);
            $record = (new ParkedRecord(
                reason: $reason,
                body: $reservation->body,
                attempts: $envelope->attempt,
                error: $outcome->error,
                sentryEvent: $event,
            ))->encode();
            return $this->written(fn () => $this->queue->park($reservation, $record), $log)
                ?? new End('parked', $reason);
        }
        $this->reported('warning', $reservation, $envelope, $outcome);
        $body = Envelope::again($reservation->body, (int) (microtime(true) * 1000) + $delay * 1000);
        return $this->written(fn () => $this->queue->later($reservation, $body, $delay), $log)
            ?? new End('retry', $reason, $delay);
    }

    /** Tell Sentry, if there is one; return its id of that. */
    private function reported(string $level, Reservation $reservation, Envelope $envelope, Outcome $outcome): ?string
    {
        if ($outcome->repeated !== null && $this->reporter !== null) {
            $last = $this->reporter->noteRepeated($outcome->repeated);
            return $outcome->eventId ?? $last;
        }
        if ($this->reporter === null || $outcome->eventId !== null) {
            return $outcome->eventId;
        }
        $event = $outcome->event;
        if ($event === null && $outcome->error !== null) {
            // The child could not tell: it died, hung, or has no job of this name.
            $lines = array_map(
                static fn (array $line): array => [$line[0], 'debug', $line[1], array_diff_key($line[2], self::OF_JOB)],
                $this->runner->kept->lines(),
            );
            $event = Sentry::event(
                $outcome->error['class'],
                $outcome->error['message'],
                $level,
                [
                    'job' => $envelope->job,
                    'queue' => $reservation->queue,
                    'tenant' => $envelope->tenant,
                    'attempt' => $envelope->attempt,
                    'release' => $this->reporter->release(),
                    'job_id' => $envelope->id,
                ],
                lines: $lines,
                stack: $outcome->error['stack'],
            );
        }
        return $event === null ? null : $this->reporter->report(['level' => $level] + $event);
    }

    private function checkChild(Outcome $outcome): void
    {
        $limit = $this->limits->memory;
        if ($this->runner->pid() === null) {
            return;
        }
        if ($outcome->replace) {
            $this->log->warning('child is replaced', ['reason' => 'around', 'child' => $this->runner->pid()]);
            $this->runner->stop();
        } elseif ($limit !== null && $outcome->memory > $limit) {
            $size = sprintf('%.0fMB', $outcome->memory / 1_000_000);
            $fields = ['reason' => 'max-memory', 'child' => $this->runner->pid(), 'size' => $size];
            $this->log->info('child is replaced', $fields);
            $this->runner->stop();
        }
    }

    /**
     * Write the item to another queue, however long it takes; how it ended when that was not possible.
     *
     * @param \Closure(): void $write
     */
    private function written(\Closure $write, Log $log): ?End
    {
        $backoff = new Backoff();
        $told = false;
        while (true) {
            try {
                $write();
                return null;
            } catch (ReservationLost $exc) {
                return new End('lost', "{$exc->getMessage()} The job will be delivered again.");
            } catch (QueueFull | ServerUnavailable | ProtocolError $exc) {
                $fields = ['error' => $exc->getMessage()];
                $log->log($told ? 'debug' : 'error', 'cannot park, trying until it works', $fields);
                $told = true;
            }
            if ($this->signals->stop === null) {
                $this->runner->wait($backoff->next());
            }
            if ($this->signals->stop !== null) {
                $this->queue->drop();
                return $this->toldToStop();
            }
        }
    }

    private function toldToStop(): End
    {
        $signal = $this->signals->stop;
        return new End('lost', "The worker was told to stop by $signal: the job goes back to its queue.");
    }

    private function tooEarly(): float
    {
        return $this->limits->minUptime - (self::now() - $this->started);
    }

    /** @param list<int> $delays */
    private static function asked(?int $delay, array $delays): string
    {
        if ($delay === null || in_array($delay, $delays, true)) {
            return 'The job asked for another try.';
        }
        $allowed = implode(', ', $delays) ?: 'none';
        return "The job asked for another try after $delay s, which is not one of the queue's retry_delays: $allowed.";
    }

    private static function now(): float
    {
        return hrtime(true) / 1e9;
    }
}
