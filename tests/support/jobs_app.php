<?php

/**
 * An application whose jobs tell what they do, wait when told to, and misbehave; jobs_app.py is its twin.
 *
 * It runs in a folder of its own, which TEST_FOLDER names: what its jobs note is in files there.
 */

declare(strict_types=1);

use KestrelStack\Consumer\Context;
use KestrelStack\Consumer\Park;
use KestrelStack\Consumer\Registry;
use KestrelStack\Consumer\Retry;

final class TestApplication
{
    public static ?string $tenant = null;
    public static string $kept = '';

    public static function note(string $name, string|int $text): void
    {
        file_put_contents(self::path($name), "$text\n", FILE_APPEND);
    }

    public static function waitFor(string $name): void
    {
        while (!file_exists(self::path($name))) {
            usleep(10_000);
            clearstatcache();
        }
    }

    public static function path(string $name): string
    {
        return getenv('TEST_FOLDER') . '/' . $name;
    }

    /** What PHP has no function for: the C library's, without any handler of PHP's. */
    public static function libc(): \FFI
    {
        return \FFI::cdef('void _exit(int status); int close(int descriptor); long write(int descriptor, '
            . 'const char *data, unsigned long size);');
    }
}

$registry = new Registry();
$note = TestApplication::note(...);
$waitFor = TestApplication::waitFor(...);

if (getenv('TEST_AROUND')) {
    $registry->around(static function (Context $context, callable $next) use ($note): void {
        $note('around', "enters $context->tenant after " . (TestApplication::$tenant ?? 'None'));
        TestApplication::$tenant = $context->tenant;
        try {
            $next();
        } finally {
            TestApplication::$tenant = null;
            $note('around', "leaves $context->tenant");
        }
    });
}

$registry->job('Note', static function (array $data, Context $context) use ($note): void {
    $note('done', $data['text'] ?? $context->id);
});

// The job's data as JSON, for a comparison by meaning.
$registry->job('Echo', static function (array $data, Context $context) use ($note): void {
    $note('echo', json_encode($data, JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION));
});

// Fails until an attempt.
$registry->job('Attempt', static function (array $data, Context $context) use ($note): void {
    $note('begun', "$context->id $context->attempt");
    if ($context->attempt < $data['until']) {
        throw new RuntimeException('not yet');
    }
    $note('done', "$context->id $context->attempt");
});

$registry->job('AskRetry', static function (array $data, Context $context) use ($note): void {
    $note('begun', $context->id);
    throw new Retry($data['delay'] ?? null);
});

$registry->job('AskPark', static function (array $data, Context $context): void {
    throw new Park($data['reason']);
});

$registry->job('Tenant', static function (array $data, Context $context) use ($note): void {
    $note('tenant', (TestApplication::$tenant ?? 'None') . " $context->tenant");
    if ($data['fail'] ?? false) {
        throw new RuntimeException('as told');
    }
});

// Logs many lines, then fails if told to.
$registry->job('Debug', static function (array $data, Context $context): void {
    for ($number = 0; $number < $data['lines']; $number++) {
        $context->log->debug('step', ['number' => $number, 'text' => str_repeat('x', $data['bytes'] ?? 0)]);
    }
    $context->log->info('now');
    if ($data['fail'] ?? false) {
        throw new RuntimeException('as told');
    }
});

$registry->job('Log', static function (array $data, Context $context): void {
    $context->log->log($data['level'], $data['event'], $data['fields']);
});

$registry->job('Print', static function (array $data, Context $context): void {
    $stream = ($data['descriptor'] ?? 1) === 1 ? STDOUT : STDERR;
    fwrite($stream, base64_decode($data['bytes'], true));
});

$registry->job('Slow', static function (array $data, Context $context) use ($note): void {
    $note('begun', $context->id);
    usleep(20_000);
    $note('done', $context->id);
});

$registry->job('Pid', static function (array $data, Context $context) use ($note): void {
    $note('done', getmypid() . ' ' . posix_getppid());
});

$registry->job('Wait', static function (array $data, Context $context) use ($note, $waitFor): void {
    $note('begun', $context->id);
    $waitFor('go');
    $note('done', $context->id);
});

$registry->job('WaitThenRaise', static function (array $data, Context $context) use ($note, $waitFor): void {
    $note('begun', $context->id);
    $waitFor('go');
    throw new RuntimeException('after the wait');
});

$registry->job('Loop', static function (array $data, Context $context) use ($note): void {
    $note('begun', $context->id);
    while (true) {
        // for ever
    }
});

$registry->job('Raise', static function (array $data, Context $context): void {
    throw new InvalidArgumentException($data['message']);
});

// An error that is none of PHP's own, with text that is not UTF-8.
$registry->job('RaiseOddly', static function (array $data, Context $context): void {
    throw new class ("\xff\xfe") extends Error {
    };
});

$registry->job('Exit', static function (array $data, Context $context): void {
    exit($data['status']);
});

$registry->job('Vanish', static function (array $data, Context $context): void {
    fwrite(STDERR, "last words\n");
    TestApplication::libc()->_exit($data['status']);
});

// Dies of SIGKILL, as often as told.
$registry->job('KillSelf', static function (array $data, Context $context) use ($note): void {
    $note('begun', "$context->id $context->attempt");
    $begun = file_get_contents(TestApplication::path('begun'));
    if (substr_count($begun, $context->id) <= ($data['times'] ?? 1000)) {
        posix_kill(getmypid(), SIGKILL);
    }
    $note('done', $context->id);
});

// Dies of SIGKILL in so many of a hundred runs.
$registry->job('Deadly', static function (array $data, Context $context) use ($note): void {
    $note('begun', $context->id);
    if (random_int(0, 99) < $data['percent']) {
        posix_kill(getmypid(), SIGKILL);
    }
    $note('done', $context->id);
});

$registry->job('Garbage', static function (array $data, Context $context) use ($note): void {
    fwrite(STDOUT, str_repeat(implode('', array_map(chr(...), range(0, 255))), 2000));
    fwrite(STDERR, random_bytes(100_000));
    $note('done', $context->id);
});

$registry->job('AllDescriptors', static function (array $data, Context $context) use ($note): void {
    $note('begun', $context->id);
    $text = 'Hello, I am a print statement.';
    foreach (range(3, 63) as $descriptor) {
        TestApplication::libc()->write($descriptor, $text, strlen($text));
    }
});

$registry->job('CloseDescriptors', static function (array $data, Context $context): void {
    foreach (range(3, 63) as $descriptor) {
        TestApplication::libc()->close($descriptor);
    }
});

$registry->job('Fork', static function (array $data, Context $context) use ($note): void {
    pcntl_fork();
    $note('forked', getmypid());
});

$registry->job('Daemonise', static function (array $data, Context $context) use ($note, $waitFor): void {
    if (pcntl_fork() === 0) {
        posix_setsid();
        $waitFor('go');
        fwrite(STDOUT, "from the daemon\n");
        $note('daemon', 'still here');
        TestApplication::libc()->_exit(0);
    }
    $note('done', $context->id);
});

$registry->job('Program', static function (array $data, Context $context) use ($note): void {
    $started = proc_open(['sleep', '600'], [], $pipes);
    $note('program', proc_get_status($started)['pid']);
    proc_close($started);
});

$registry->job('TermProgram', static function (array $data, Context $context) use ($note): void {
    $started = proc_open(['sleep', '600'], [], $pipes);
    // Until then it is a copy of this process, whose handlers of signals are PHP's.
    while (!str_contains(file_get_contents('/proc/' . proc_get_status($started)['pid'] . '/comm'), 'sleep')) {
        usleep(1_000);
    }
    proc_terminate($started);
    while (($status = proc_get_status($started))['running']) {
        usleep(10_000);
    }
    $note('done', -$status['termsig']);
});

$registry->job('Coroutine', static function (array $data, Context $context): mixed {
    return (static function () {
        yield 1;
    })();
});

// Keeps so much memory, instead of what was kept before.
$registry->job('Memory', static function (array $data, Context $context) use ($note): void {
    TestApplication::$kept = '';
    TestApplication::$kept = str_repeat('x', $data['megabytes'] * 1_000_000);
    $note('done', getmypid());
});

$registry->job('Say', static function (array $data, Context $context): void {
    $context->log->info('said', [
        'text' => $data['text'],
        'environment' => $context->environment,
        'release' => $context->release,
    ]);
    echo 'printed ', $data['text'], "\n";
});

return $registry;
