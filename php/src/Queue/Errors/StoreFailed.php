<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** The store could not be used, so nothing was run, or it is not known to be done. */
class StoreFailed extends QueueError
{
}
