<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** Another worker is doing this at the moment; try again later. */
class Busy extends QueueError
{
}
