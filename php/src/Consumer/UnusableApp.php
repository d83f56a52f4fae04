<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** The application cannot be loaded, or returns no registry; trying again would not help. */
final class UnusableApp extends \RuntimeException
{
    public function __construct(string $message, public readonly string $stack = '')
    {
        parent::__construct($message);
    }
}
