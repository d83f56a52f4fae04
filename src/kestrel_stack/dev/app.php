<?php

/** The application's registry, with the stack of an error printed when a job fails; see app.py beside this file. */

declare(strict_types=1);

use KestrelStack\Consumer\{Context, Park, Retry};

return (require (string) realpath(getenv('KESTREL_STACK_DEV_APP')))->around(static function (Context $context, callable $next): void {
    try {
        $next();
    } catch (Park | Retry $asked) {
        throw $asked;
    } catch (Throwable $error) {
        fwrite(STDERR, $error::class . ': ' . $error->getMessage() . ' in ' . $error->getFile() . ' line '
            . $error->getLine() . "\n");
        throw $error;
    }
});
