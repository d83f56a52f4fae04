<?php

declare(strict_types=1);

namespace Shop;

use KestrelStack\Consumer\Context;

/** Greets someone in the log. */
final class HelloWorld
{
    /** @param array<string, mixed> $data `name` is who is greeted */
    public function __invoke(array $data, Context $context): void
    {
        $context->log->info('Hello, ' . ($data['name'] ?? 'World') . '!');
        Ledger::note($context);
    }
}
