"""Wait until a Kestrel answers `version` on its memcache port: ADDRESS PORT SECONDS.

This, and not the admin port's ping, tells a server that serves from one that merely runs.
"""

import socket
import sys
import time

address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
deadline = time.monotonic() + seconds
problem = "no answer"
while time.monotonic() < deadline:
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.sendall(b"VERSION\r\n")
            answer = connection.makefile("rb").readline(200)
        if answer.startswith(b"VERSION "):
            print(answer.decode("ascii", "replace").strip())  # noqa: T201
            sys.exit(0)
        problem = f"it answered {answer!r}"
    except OSError as error:
        problem = error.strerror or str(error)
    time.sleep(0.1)
print(f"Kestrel does not answer version on {address}:{port} after {seconds:.0f} s ({problem}).")  # noqa: T201
sys.exit(1)
