<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\QueueFull;
use KestrelStack\Queue\Errors\ServerUnavailable;

/** Jobs that wait for a commit; see `Producer::afterCommit`. */
final class AfterCommit
{
    /** @var list<array{string, string, string, ?int}> */
    private array $jobs = [];

    public function __construct(private readonly Producer $producer)
    {
    }

    /** Returns how many jobs are not enqueued yet. */
    public function left(): int
    {
        return count($this->jobs);
    }

    /**
     * Notes a job and returns its id; what is wrong with it is thrown now, as by `Producer::enqueue`.
     *
     * @param array<mixed>|\stdClass $data
     * @param ?array<string> $trace
     */
    public function enqueue(
        string $job,
        array|\stdClass $data = [],
        ?string $queue = null,
        ?int $delay = null,
        ?string $id = null,
        ?array $trace = null,
    ): string {
        $checked = $this->producer->checked($job, $data, $queue, $delay, $id, $trace);
        $this->jobs[] = $checked;
        return $checked[1];
    }

    /**
     * Enqueues the jobs now.
     *
     * Those that were not taken are kept, so that another `flush` tries them again. A server that does not answer is
     * waited for once, not for each job.
     *
     * @throws QueueFull|ServerUnavailable when some were not taken
     */
    public function flush(): void
    {
        $count = count($this->jobs);
        $kept = [];
        $failure = null;
        while ($this->jobs !== []) {
            try {
                $this->producer->send($this->jobs[0]);
            } catch (QueueFull $failure) {
                $kept[] = $this->jobs[0];
            } catch (ServerUnavailable $failure) {
                break;
            }
            array_shift($this->jobs);
        }
        $this->jobs = [...$kept, ...$this->jobs];
        if ($failure !== null) {
            $said = "After the commit {$this->left()} of $count jobs are not enqueued. " . $failure->getMessage();
            throw $failure instanceof QueueFull ? new QueueFull($said) : new ServerUnavailable($said);
        }
    }
}
