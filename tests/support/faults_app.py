"""The application of the fault matrix: one job, `Note`, in both languages, that can also call, eat and fail.

Its data: `run` (whose notes), `sent`, `seconds` (how long it takes), and where a row wants it `call` (an
address that must answer 200 within `CALL_SECONDS`), `eat` (MB that it takes for the time of the job), `leak`
(MB that it keeps), `scratch` (KB that it writes below var/ first).
"""

from __future__ import annotations

from pathlib import Path

from support.deploy import GitApp

CALL_SECONDS = 2
"""How long the job waits for its third party."""

# A line is written with one write() to a file opened to append, so that it is whole, and there also when the
# worker is killed the moment after. It begins with a line's end: the one before may have been cut off by a
# full disk; then that was no note, and its job failed.
PYTHON = '''
import os
import time
import urllib.request

from kestrel_stack.consumer import Registry

registry = Registry()
leaked = []


@registry.job("HelloWorld")
def hello(data, context):
    """What the shop does, and nothing."""


@registry.job("Note")
def note(data, context):
    """Note durably that this job was done."""
    began = time.time()
    if "call" in data:
        urllib.request.urlopen(data["call"], timeout=CALL_SECONDS).close()
    if "leak" in data:
        leaked.append(b"x" * (data["leak"] * 1_000_000))
    eaten = b"x" * (data.get("eat", 0) * 1_000_000)
    if "scratch" in data:
        write(f"var/scratch-{os.getpid()}", b"x" * (data["scratch"] * 1024), os.O_TRUNC)
    time.sleep(data["seconds"])
    del eaten
    line = f"\\n{context.id} {data['sent']:.6f} {began:.6f} {time.time():.6f} {context.release}"
    write(f"var/done-{data['run']}", line.encode(), os.O_APPEND)


def write(name, content, flags):
    """Write all of it, or raise."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o664)
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(f"No space left for all of {name}")
    finally:
        os.close(descriptor)
'''.replace("CALL_SECONDS", str(CALL_SECONDS))

PHP = """<?php

declare(strict_types=1);

use KestrelStack\\Consumer\\Context;
use KestrelStack\\Consumer\\Registry;

require_once dirname(__DIR__) . '/kestrel-stack/php/autoload.php';

/** Write all of it, or throw. */
function write(string $name, string $content, string $mode): void
{
    $file = fopen($name, $mode);
    if ($file === false) {
        throw new RuntimeException('cannot open the file');
    }
    if (@fwrite($file, $content) !== strlen($content)) {
        throw new RuntimeException('No space left for all of it');
    }
    fclose($file);
}

$leaked = [];

return (new Registry())->job('Note', function (array $data, Context $context) use (&$leaked): void {
    $began = microtime(true);
    if (isset($data['call'])) {
        $request = stream_context_create(['http' => ['timeout' => CALL_SECONDS, 'ignore_errors' => true]]);
        $answer = @file_get_contents($data['call'], false, $request);
        $status = $answer === false ? 'nothing' : explode(' ', $http_response_header[0])[1];
        if ($status !== '200') {
            throw new RuntimeException("the third party answered $status");
        }
    }
    if (isset($data['leak'])) {
        $leaked[] = str_repeat('x', $data['leak'] * 1_000_000);
    }
    $eaten = str_repeat('x', ($data['eat'] ?? 0) * 1_000_000);
    if (isset($data['scratch'])) {
        write('var/scratch-' . getmypid(), str_repeat('x', $data['scratch'] * 1024), 'w');
    }
    usleep((int) ($data['seconds'] * 1_000_000));
    unset($eaten);
    $times = sprintf('%.6f %.6f %.6f', $data['sent'], $began, microtime(true));
    write("var/done-{$data['run']}", "\\n{$context->id} $times {$context->release}", 'a');
});
""".replace("CALL_SECONDS", str(CALL_SECONDS))


def fault_app(folder: Path) -> GitApp:
    """Make the application in a repository of its own."""
    app = GitApp(folder)
    app.write("shop/jobs.py", PYTHON)
    app.write("php/jobs.php", PHP)
    # Watching a canary is a test of its own; the rows need not wait for it.
    app.write("deploy.yml", (app.path / "deploy.yml").read_text() + "roll: {soak: 0}\n")
    app.commit("jobs of the fault matrix")
    return app
