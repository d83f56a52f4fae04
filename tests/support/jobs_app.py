"""An application whose jobs tell what they do, wait when told to, and misbehave; jobs_app.php is its twin.

It runs in a folder of its own, which TEST_FOLDER names: what its jobs note is in files there.
"""

import base64
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from kestrel_stack.consumer import Park, Registry, Retry

registry = Registry()
FOLDER = pathlib.Path(os.environ["TEST_FOLDER"])
state = {"tenant": None}
kept = []


def note(name, text):
    with (FOLDER / name).open("ab", 0) as file:
        file.write(f"{text}\n".encode())


def wait_for(name):
    while not (FOLDER / name).exists():
        time.sleep(0.01)


if os.environ.get("TEST_AROUND"):

    @registry.around
    @contextlib.contextmanager
    def tenant(context):
        note("around", f"enters {context.tenant} after {state['tenant']}")
        state["tenant"] = context.tenant
        try:
            yield
        finally:
            state["tenant"] = None
            note("around", f"leaves {context.tenant}")


@registry.job("Note")
def note_it(data, context):
    note("done", data.get("text", context.id))


@registry.job("Echo")
def echo(data, context):
    """Write the job's data down as JSON, for a comparison by meaning."""
    import json

    note("echo", json.dumps(data))


@registry.job("Attempt")
def attempt(data, context):
    """Fail until an attempt."""
    note("begun", f"{context.id} {context.attempt}")
    if context.attempt < data["until"]:
        raise RuntimeError("not yet")
    note("done", f"{context.id} {context.attempt}")


@registry.job("AskRetry")
def ask_retry(data, context):
    note("begun", context.id)
    raise Retry(data.get("delay"))


@registry.job("AskPark")
def ask_park(data, context):
    raise Park(data["reason"])


@registry.job("Tenant")
def tenant_of_job(data, context):
    note("tenant", f"{state['tenant']} {context.tenant}")
    if data.get("fail"):
        raise RuntimeError("as told")


@registry.job("Debug")
def debug(data, context):
    """Log many lines, then fail if told to."""
    for number in range(data["lines"]):
        context.log.debug("step", number=number, text="x" * data.get("bytes", 0))
    context.log.info("now")
    if data.get("fail"):
        raise RuntimeError("as told")


@registry.job("Log")
def log(data, context):
    getattr(context.log, data["level"])(data["event"], **data["fields"])


@registry.job("Print")
def print_it(data, context):
    os.write(data.get("descriptor", 1), base64.b64decode(data["bytes"]))


@registry.job("Slow")
def slow(data, context):
    note("begun", context.id)
    time.sleep(0.02)
    note("done", context.id)


@registry.job("Pid")
def pid(data, context):
    note("done", f"{os.getpid()} {os.getppid()}")


@registry.job("Wait")
def wait(data, context):
    note("begun", context.id)
    wait_for("go")
    note("done", context.id)


@registry.job("WaitThenRaise")
def wait_then_raise(data, context):
    note("begun", context.id)
    wait_for("go")
    raise RuntimeError("after the wait")


@registry.job("Loop")
def loop(data, context):
    note("begun", context.id)
    while True:
        pass


@registry.job("Raise")
def raise_it(data, context):
    raise ValueError(data["message"])


@registry.job("RaiseOddly")
def raise_oddly(data, context):
    class Odd(BaseException):
        def __str__(self):
            raise RuntimeError("not even this")

    raise Odd()


@registry.job("Exit")
def exit_it(data, context):
    sys.exit(data["status"])


@registry.job("Vanish")
def vanish(data, context):
    print("last words", file=sys.stderr)  # noqa: T201
    os._exit(data["status"])


@registry.job("KillSelf")
def kill_self(data, context):
    """Die of SIGKILL, as often as told."""
    note("begun", f"{context.id} {context.attempt}")
    if len((FOLDER / "begun").read_text().split(context.id)) - 1 <= data.get("times", 1000):
        os.kill(os.getpid(), signal.SIGKILL)
    note("done", context.id)


@registry.job("Deadly")
def deadly(data, context):
    """Die of SIGKILL in so many of a hundred runs."""
    note("begun", context.id)
    if random.random() * 100 < data["percent"]:
        os.kill(os.getpid(), signal.SIGKILL)
    note("done", context.id)


@registry.job("Garbage")
def garbage(data, context):
    os.write(1, bytes(range(256)) * 2000)
    os.write(2, os.urandom(100_000))
    note("done", context.id)


@registry.job("AllDescriptors")
def all_descriptors(data, context):
    note("begun", context.id)
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"Hello, I am a print statement.")


@registry.job("CloseDescriptors")
def close_descriptors(data, context):
    os.closerange(3, 64)


@registry.job("Fork")
def fork(data, context):
    os.fork()
    note("forked", os.getpid())


@registry.job("Daemonise")
def daemonise(data, context):
    if os.fork() == 0:
        os.setsid()
        wait_for("go")
        print("from the daemon", flush=True)  # noqa: T201
        note("daemon", "still here")
        os._exit(0)
    note("done", context.id)


@registry.job("Program")
def program(data, context):
    started = subprocess.Popen(["sleep", "600"])
    note("program", started.pid)
    started.wait()


@registry.job("TermProgram")
def term_program(data, context):
    started = subprocess.Popen(["sleep", "600"])
    started.terminate()
    note("done", started.wait())


@registry.job("Coroutine")
def coroutine(data, context):
    async def later(): ...

    made = later()
    made.close()
    return made


@registry.job("Memory")
def memory(data, context):
    """Keep so much memory, instead of what was kept before."""
    kept[:] = [b"x" * (data["megabytes"] * 1_000_000)]
    note("done", os.getpid())


@registry.job("Say")
def say(data, context):
    context.log.info("said", text=data["text"], environment=context.environment, release=context.release)
    print("printed", data["text"])  # noqa: T201
