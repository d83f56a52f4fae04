<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** A wrong flag; the message is one line. */
final class UsageError extends \RuntimeException
{
}
