<?php

/**
 * Loads the classes of KestrelStack without Composer: `require '…/php/autoload.php';`
 */

declare(strict_types=1);

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'KestrelStack\\')) {
        $file = __DIR__ . '/src/' . strtr(substr($class, strlen('KestrelStack\\')), '\\', '/') . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});

// Functions cannot be loaded when they are called.
require_once __DIR__ . '/src/Assets/functions.php';
