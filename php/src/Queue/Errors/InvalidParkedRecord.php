<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** Bytes that are not a parked record. */
class InvalidParkedRecord extends InvalidEnvelope
{
}
