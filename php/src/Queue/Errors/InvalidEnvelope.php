<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** Bytes that are not a job envelope: `faults` holds one sentence per fault, the message is all of them. */
class InvalidEnvelope extends QueueError
{
    /** @param non-empty-list<string> $faults */
    public function __construct(public readonly array $faults)
    {
        parent::__construct(implode(' ', $faults));
    }
}
