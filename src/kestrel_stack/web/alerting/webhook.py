"""Messages to a webhook: in order, repeated until they are taken, by a thread that nobody waits for.

An address of a webhook is a secret as a rule: only its host ever appears in a log or a message. Redirects
are not followed.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from kestrel_stack.queue.servers import Backoff

MAX_WAITING = 1000
"""So many messages wait for a receiver that does not answer; of more the oldest are dropped."""
GIVE_UP_S = 24 * 3600.0
MAX_REFUSED = 5
"""A message that the receiver calls wrong (4xx) is sent so often."""
BACKOFF_S = (1.0, 60.0)

_TRY_LATER = (408, 425, 429)

Message = dict[str, Any]

log = logging.getLogger("kestrel-web")


class DeliveryError(Exception):
    """A message was not taken; the text names the host and the reason."""

    def __init__(self, text: str, refused: bool = False):
        super().__init__(text)
        self.refused = refused


def origin(url: str) -> str:
    """Return what of a webhook's address may be shown."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    with contextlib.suppress(ValueError):
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    return f"{parts.scheme}://{host}"


def post(url: str, message: Mapping[str, Any], timeout: float) -> None:
    """Send one message; raise `DeliveryError` when it is not answered with 2xx within `timeout` seconds."""
    try:
        status = _post(urlsplit(url), json.dumps(message).encode(), timeout)
    except TimeoutError:
        raise DeliveryError(f"{origin(url)} did not answer in {timeout:g} s") from None
    except ssl.SSLError as exc:
        raise DeliveryError(f"{origin(url)}: TLS failed: {exc.reason or 'no reason given'}") from None
    except OSError as exc:
        raise DeliveryError(f"{origin(url)}: {exc.strerror or type(exc).__name__}") from None
    except (http.client.HTTPException, ValueError) as exc:
        # Their texts may quote the address.
        raise DeliveryError(f"{origin(url)} cannot be asked: {type(exc).__name__}") from None
    if not 200 <= status < 300:
        hint = ", and redirects are not followed" if 300 <= status < 400 else ""
        refused = 400 <= status < 500 and status not in _TRY_LATER
        raise DeliveryError(f"{origin(url)} answered {status}{hint}", refused)


def _post(parts: SplitResult, body: bytes, timeout: float) -> int:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    headers = {"Content-Type": "application/json", "User-Agent": "kestrel-web", "Connection": "close"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    late = threading.Event()

    def abort() -> None:
        late.set()
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                # Below TLS, which would have a say of its own.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    # The socket's time-out is per read; one that answers a byte a second would never end.
    watch = threading.Timer(timeout, abort)
    watch.daemon = True
    watch.start()
    try:
        connection.request("POST", target, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        watch.cancel()
        connection.close()
    if late.is_set():
        # The answer was cut short by us, which reads like one that ends.
        raise TimeoutError
    return status


@dataclass
class _Waiting:
    message: Message
    born: float
    refused: int = 0


@dataclass(frozen=True)
class Counters:
    """What became of the messages since the start."""

    sent: int = 0
    failed: int = 0
    """Attempts that were not taken."""
    dropped: int = 0


class Delivery:
    """Sends messages in a thread of its own; `changed` is called when one more has left the queue."""

    def __init__(self, url: str, timeout: float, changed: Callable[[], None]):
        self._url, self._timeout, self._changed = url, timeout, changed
        self._condition = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._backoff = Backoff(*BACKOFF_S)
        self._counters = [0, 0, 0]
        self._failing: tuple[str, float] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more; what waits is for the caller to keep."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(0.5)

    def add(self, messages: Iterable[Message]) -> None:
        """Send messages after those that wait; never waits itself."""
        with self._condition:
            for message in messages:
                self._waiting.append(_Waiting(message, time.monotonic()))
            dropped = max(0, len(self._waiting) - MAX_WAITING)
            for _ in range(dropped):
                # Not the one that is just being sent.
                del self._waiting[1]
            self._counters[2] += dropped
            self._condition.notify_all()
        if dropped:
            log.error("webhook: %d messages were dropped, too many wait for %s", dropped, origin(self._url))

    def waiting(self) -> list[Message]:
        """Return what is not sent yet."""
        with self._condition:
            return [each.message for each in self._waiting]

    def counters(self) -> Counters:
        """Return what became of the messages since the start."""
        with self._condition:
            return Counters(*self._counters)

    def trouble(self) -> str | None:
        """Return in one line why messages wait, or None."""
        with self._condition:
            if self._failing is None:
                return None
            text, since = self._failing
            number, span = len(self._waiting), time.monotonic() - since
        return f"The webhook has failed for {span:.0f} s: {text}; {number} message{'s' * (number != 1)} wait."

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                head = self._waiting[0]
            try:
                post(self._url, head.message, self._timeout)
            except DeliveryError as exc:
                pause = self._failed(head, exc)
            except Exception as exc:
                log.exception("webhook: a message could not be sent")
                pause = self._failed(head, DeliveryError(f"{origin(self._url)}: {type(exc).__name__}"))
            else:
                pause = self._sent()
            if pause:
                with self._condition:
                    self._condition.wait_for(lambda: self._stopping, pause)

    def _sent(self) -> float:
        with self._condition:
            self._waiting.popleft()
            self._counters[0] += 1
            if self._failing is not None:
                log.info("webhook: %s takes messages again", origin(self._url))
            self._failing = None
        self._backoff.reset()
        self._changed()
        return 0.0

    def _failed(self, head: _Waiting, error: DeliveryError) -> float:
        head.refused += error.refused
        over = head.refused >= MAX_REFUSED or time.monotonic() - head.born > GIVE_UP_S
        with self._condition:
            self._counters[1] += 1
            if self._failing is None or self._failing[0] != str(error):
                log.warning("webhook: %s", error)
            self._failing = (str(error), self._failing[1] if self._failing else time.monotonic())
            if over:
                self._waiting.popleft()
                self._counters[2] += 1
        if over:
            log.error("webhook: a message was given up (%s): %s", error, head.message.get("text"))
            self._changed()
        return self._backoff.next()
