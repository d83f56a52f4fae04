"""One deploy's script that stays on a host, driven line by line."""

from __future__ import annotations

import base64
import json
import signal

from kestrel_stack.deploy import scripts

ID = "0123456789abcdef"


class Holder:
    """The script `hold`, run for real in a tree, with this test as the deploy."""

    def __init__(self, tree, lock_id=ID, **options):
        values = {"helper": str(tree.helper), **options}
        script = scripts.hold(str(tree.srv), tree.groups, (), lock_id=lock_id, **values)
        self.tree = tree
        self.id = lock_id
        self.number = 0
        self.process = tree.start(script)
        self.inspection = self.answer()

    def send(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def line(self):
        line = self.process.stdout.readline().decode(errors="replace")
        assert line.endswith("\n"), self.process.stderr.read().decode()
        return line.rstrip("\n")

    def answer(self):
        """The lines up to the one that ends an answer."""
        lines = []
        while (line := self.line()) != f"@ ready {self.number}":
            lines.append(line)
        return lines

    def begin(self, question):
        self.number += 1
        self.send(f"{self.number} {question}")

    def ask(self, question):
        self.begin(question)
        return self.answer()

    def content(self, **changes):
        return {"id": self.id, "owner": "ann", "lease": 60, **changes}

    def lock(self, **changes):
        return self.ask("lock " + json.dumps(self.content(**changes), sort_keys=True))

    def renew(self):
        self.send("")
        return self.line()

    def finish(self, **details):
        script = scripts.finish(str(self.tree.srv), self.id, **details)
        self.begin("finish " + base64.b64encode(script.encode()).decode())
        return self.end(close=False)

    def end(self, *, close=True):
        """Wait for the end; with ``close`` the connection is lost before. Returns code, lines and errors."""
        if close:
            self.process.stdin.close()
        out, err = self.process.stdout.read(), self.process.stderr.read()
        code = self.process.wait(60)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        return code, out.decode().splitlines(), err.decode()

    def kill(self):
        """End it as a machine would that runs out of memory: without a word."""
        self.process.send_signal(signal.SIGKILL)
        return self.end()
