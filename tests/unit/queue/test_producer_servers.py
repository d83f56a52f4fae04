"""In which order a producer tries its servers."""

import pytest

from kestrel_stack.queue import kestrel
from kestrel_stack.queue.errors import QueueFull, ServerUnavailable
from kestrel_stack.queue.kestrel import KestrelStore


class Servers(KestrelStore):
    """Two servers without sockets; what is asked of them is noted, and one of them fails."""

    def __init__(self, failure):
        super().__init__("shop", "bad:1,good:1", ["mail"])
        self.failure = failure
        self.tried = []

    def _client(self, server, seconds):
        self.tried.append(server.host)
        store = self

        class Client:
            def set(self, name, body):
                if server.host == "bad" and store.failure is not None:
                    raise store.failure

        return Client()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    moments = [100.0]
    monkeypatch.setattr(kestrel.time, "monotonic", lambda: moments[-1])
    return moments


def puts(store, count=50):
    store.tried.clear()
    for _ in range(count):
        store.put("mail", b"x", None, 5)
    return store.tried.count("bad")


def test_a_server_that_has_just_failed_is_not_asked_while_another_takes_jobs(clock):
    store = Servers(ServerUnavailable("no answer"))
    assert puts(store) == 1
    assert puts(store) == 0


def test_it_is_asked_again_later_and_like_the_others_once_it_answers(clock):
    store = Servers(ServerUnavailable("no answer"))
    puts(store)
    clock.append(clock[-1] + 10)
    assert puts(store) == 1
    clock.append(clock[-1] + 10)
    store.failure = None
    assert puts(store) > 1
    store.failure = ServerUnavailable("no answer")
    puts(store)
    # Short again, since it had answered in between.
    clock.append(clock[-1] + 0.21)
    assert puts(store) == 1


def test_a_full_queue_is_no_failure_of_its_server(clock):
    store = Servers(QueueFull("full"))
    assert puts(store) > 1


def test_servers_that_have_failed_are_tried_when_no_other_takes_the_job(clock):
    store = Servers(ServerUnavailable("no answer"))
    store.servers = store.servers[:1]
    for _ in range(3):
        with pytest.raises(ServerUnavailable, match="Not enqueued: no answer"):
            store.put("mail", b"x", None, 5)
    assert store.tried == ["bad"] * 3
