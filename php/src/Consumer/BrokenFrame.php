<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** Bytes that are not a message; nothing after them can be understood either. */
final class BrokenFrame extends \RuntimeException
{
}
