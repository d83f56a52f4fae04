<?php

/** Loads the classes of the stack and of this application. */

declare(strict_types=1);

// In a release the deploy has put the stack's beside the application; in the stack's own checkout they are further up.
$stack = dirname(__DIR__) . '/kestrel-stack/php/autoload.php';
require_once is_file($stack) ? $stack : dirname(__DIR__, 3) . '/php/autoload.php';

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'Shop\\')) {
        $file = __DIR__ . '/src/' . strtr(substr($class, strlen('Shop\\')), '\\', '/') . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});
