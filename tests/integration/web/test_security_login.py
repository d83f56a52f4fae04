"""Logging in to a real kestrel-web: sessions, cookies, and what guessing passwords comes to."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from support.broker import wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_visitor import PASSWORD, Visitor, user

HTTPS = {"X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module")
def web(brokers, tmp_path_factory):
    users = [user("ann", "operator"), user("bob")]
    with KestrelWeb(
        tmp_path_factory.mktemp("web"),
        **servers(brokers[0]),
        users=users,
        hosts=["queues.example"],
        forwarded_from=["127.0.0.1"],
    ) as running:
        yield running


def set_cookies(response) -> dict[str, str]:
    lines = response.headers.get_all("Set-Cookie") or []
    return {line.partition("=")[0]: line for line in lines}


def rows(web) -> int:
    with closing(sqlite3.connect(f"file:{web.state}/kestrel-web.sqlite3?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM sessions").fetchone()[0]


def most_memory_mb(web) -> float:
    """The most that the process has had so far."""
    status = Path(f"/proc/{web.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def from_address(web, address: str) -> Visitor:
    """Somebody elsewhere, as the trusted proxy in front says: waits of one test are nobody else's."""
    return Visitor(web, X_Forwarded_For=address)


class TestSession:
    def test_somebody_without_a_session_is_shown_the_login_and_comes_back_to_where_they_were(self, web):
        visitor = Visitor(web)
        answer = visitor.get("/queues?f=items%3E1&sort=age")
        assert answer.status == 303
        assert answer.headers["Location"].startswith("/login?next=/queues")
        page = visitor.get(answer.headers["Location"]).data.decode()
        back = re.search(r'name="next" value="([^"]+)"', page)[1].replace("&amp;", "&").replace("&gt;", ">")
        answer = visitor.log_in("ann", next=back)
        assert (answer.status, answer.headers["Location"]) == (303, "/queues?f=items%3E1&sort=age")
        assert visitor.get("/queues").status == 200

    def test_a_script_is_told_that_the_session_has_ended_instead_of_being_sent_to_the_login(self, web):
        assert Visitor(web).get("/queues", Sec_Fetch_Mode="cors").status == 401
        assert Visitor(web).get("/queues", X_Kestrel_Fragment="1").status == 401
        assert Visitor(web).get("/api/v1/queues").status == 401

    def test_the_id_is_a_new_one_after_the_login(self, web):
        """Session fixation: an id that somebody planted before is worth nothing afterwards."""
        visitor = Visitor(web)
        visitor.get("/login")
        [(name, planted)] = visitor.cookies.items()
        visitor.logged_in("ann")
        assert visitor.cookies[name] != planted
        assert Visitor(web).get("/queues", Cookie=f"{name}={planted}").status == 303

    def test_an_id_that_somebody_made_up_becomes_no_session(self, web):
        visitor = Visitor(web)
        visitor.get("/login")
        [name] = visitor.cookies
        visitor.cookies[name] = "A" * 43
        visitor.logged_in("ann")
        assert visitor.cookies[name] != "A" * 43

    def test_a_second_login_ends_the_first_session_of_the_same_browser(self, web):
        visitor = Visitor(web).logged_in("ann")
        first = dict(visitor.cookies)
        visitor.logged_in("bob")
        old = Visitor(web)
        old.cookies = first
        assert old.get("/queues").status == 303

    def test_a_logout_ends_the_session_on_the_server(self, web):
        visitor = Visitor(web).logged_in("ann")
        kept = dict(visitor.cookies)
        assert visitor.post("/logout").status == 303
        copy = Visitor(web)
        copy.cookies = kept
        assert copy.get("/queues").status == 303
        assert Visitor(web).get("/logout").status == 405

    def test_the_token_of_a_form_is_good_for_one_session_only(self, web):
        here, there = Visitor(web), Visitor(web).logged_in("ann")
        before = here.token()
        here.logged_in("ann")
        for token in (before, there.token()):
            assert here.post("/logout", token=token).status == 400
        assert here.get("/queues").status == 200
        assert here.post("/logout", token=here.token()).status == 303

    def test_a_session_outlives_a_restart_but_not_the_users_password(self, brokers, tmp_path):
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[user("ann"), user("bob")]) as web:
            ann, bob = Visitor(web).logged_in("ann"), Visitor(web).logged_in("bob")
            web.restart()
            assert ann.get("/queues").status == bob.get("/queues").status == 200
            web.config["users"] = [user("ann", password="another password"), web.config["users"][1]]
            web.restart()
            assert ann.get("/queues").status == 303
            assert bob.get("/queues").status == 200
            web.config["users"] = web.config["users"][:1]
            web.restart()
            assert bob.get("/queues").status == 303

    def test_the_role_is_the_one_that_the_configuration_names_now(self, brokers, tmp_path):
        ann = user("ann", "operator")
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[ann]) as web:
            visitor = Visitor(web).logged_in("ann")
            web.config["users"] = [{**ann, "role": "viewer"}]
            web.restart()
            assert visitor.get("/queues").status == 200
            assert visitor.post("/api/v1/queues/x/flush").status == 403

    def test_neither_the_id_nor_the_password_is_on_the_disk_or_in_the_log(self, web):
        visitor = Visitor(web).logged_in("ann")
        Visitor(web).log_in("ann", "a wrong password")
        secrets = [*visitor.cookies.values(), PASSWORD, "a wrong password"]
        for file in [*web.state.iterdir(), web.log_file]:
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], file

    def test_what_is_kept_may_be_read_by_nobody_else(self, web):
        assert web.state.stat().st_mode & 0o077 == 0
        assert (web.state / "session.key").stat().st_mode & 0o077 == 0
        assert len((web.state / "session.key").read_bytes()) == 32

    def test_the_database_that_cannot_be_used_locks_nobody_out(self, brokers, tmp_path):
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[user("ann")]) as web:
            before = Visitor(web).logged_in("ann")
            lock = sqlite3.connect(web.state / "kestrel-web.sqlite3", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            try:
                assert before.get("/queues").status == 200
                after = Visitor(web).logged_in("ann")
                assert after.get("/queues").status == 200
                assert before.post("/logout").status == 303
                ended = dict(before.cookies)
            finally:
                lock.close()
            # The next who comes sees to it that the database knows, too.
            wait_until(
                lambda: after.get("/queues").status == 200 and rows(web) == 0, "the logout to be written"
            )
            web.restart()
            gone = Visitor(web)
            gone.cookies = ended
            assert gone.get("/queues").status == 303


class TestCookies:
    def test_by_http_it_is_no_scripts_business_and_no_other_sites(self, web):
        [line] = set_cookies(Visitor(web).get("/login")).values()
        assert line.startswith(f"kestrel-web-{web.port}=")
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} == set(line.split("; ")[1:])

    def test_by_https_it_stays_there_and_no_neighbour_can_set_it(self, web):
        [line] = set_cookies(Visitor(web, **HTTPS).get("/login")).values()
        assert line.startswith(f"__Host-kestrel-web-{web.port}=")
        assert {"HttpOnly", "SameSite=Lax", "Path=/", "Secure"} == set(line.split("; ")[1:])

    def test_by_https_a_cookie_that_http_could_have_set_counts_for_nothing(self, web):
        visitor = Visitor(web).logged_in("ann")
        name = f"kestrel-web-{web.port}"
        assert visitor.get("/queues").status == 200
        assert Visitor(web, **HTTPS).get("/queues", Cookie=f"{name}={visitor.cookies[name]}").status == 303

    def test_who_only_looks_at_a_public_file_gets_none(self, web):
        for path in ("/static/kestrel-web.css", "/healthz", "/nothing-here"):
            assert set_cookies(Visitor(web).get(path)) == {}


class TestGuessing:
    def test_a_wrong_name_and_a_wrong_password_look_the_same(self, web):
        guesser = from_address(web, "192.0.2.1")
        pages = []
        for name in ("ann", "nobody"):
            answer = guesser.log_in(name, "wrong")
            assert answer.status == 403
            pages.append(re.sub(r'(value|data-at|data-serial)="[^"]*"', "", answer.data.decode()))
        assert pages[0] == pages[1]
        assert "The name or the password is wrong." in pages[0]
        assert 'role="alert"' in pages[0]

    def test_many_guesses_have_to_wait_and_are_told_how_long(self, web):
        guesser = from_address(web, "192.0.2.2")
        token = guesser.token()
        answers = [guesser.post("/login", {"name": f"guess{n}", "password": "x"}, token) for n in range(21)]
        assert [answer.status for answer in answers] == [403] * 20 + [429]
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert re.search(r"Too many attempts failed; try again in \d+ s\.", answers[-1].data.decode())
        # The right password waits as well: nobody learns it by asking on.
        assert guesser.post("/login", {"name": "ann", "password": PASSWORD}, token).status == 429
        # Somebody elsewhere does not.
        assert from_address(web, "192.0.2.3").log_in("ann").status == 303

    def test_a_stranger_cannot_keep_out_somebody_who_was_here_before(self, web):
        bob = from_address(web, "192.0.2.4").logged_in("bob")
        bob.post("/logout")
        strangers = [from_address(web, f"198.51.100.{n}") for n in range(11)]
        answers = [stranger.log_in("bob", "guess") for stranger in strangers]
        # However many addresses they have: the name waits.
        assert [answer.status for answer in answers] == [403] * 10 + [429]
        assert from_address(web, "192.0.2.5").log_in("bob").status == 429
        assert bob.log_in("bob").status == 303
        # A browser that is known for one user is a stranger to the next.
        assert bob.log_in("ann", "wrong").status == 403

    def test_a_name_that_nobody_has_waits_just_as_one_that_somebody_has(self, web):
        answers = [
            from_address(web, f"203.0.113.{n}").log_in("no such user", "guess").status for n in range(11)
        ]
        assert answers == [403] * 10 + [429]

    def test_a_mark_of_a_known_browser_that_somebody_made_up_is_none(self, web):
        guesser = from_address(web, "192.0.2.6")
        token, answers = guesser.token(), []
        for n in range(11):
            guesser.cookies[f"kestrel-web-{web.port}-device"] = f"{n:043}." + "0" * 64
            answers.append(guesser.post("/login", {"name": "somebody", "password": "x"}, token).status)
        assert answers == [403] * 10 + [429]

    def test_an_address_that_nobody_believes_changes_nothing(self, brokers, tmp_path):
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[user("ann")]) as web:
            token_of = Visitor(web)
            token = token_of.token()
            statuses = [
                token_of.post(
                    "/login", {"name": f"g{n}", "password": "x"}, token, X_Forwarded_For=f"192.0.2.{n}"
                ).status
                for n in range(21)
            ]
            assert statuses[-1] == 429

    def test_a_password_of_a_megabyte_is_a_wrong_one(self, web):
        assert from_address(web, "192.0.2.7").log_in("ann", PASSWORD + "x" * 900_000).status == 403


class TestFlood:
    MEMORY_MB = 64
    AT_ONCE = 40

    def test_many_logins_at_once_take_the_memory_of_two(self, brokers, tmp_path):
        """And those who look at pages do not wait behind them."""
        real = PasswordHasher(time_cost=1, memory_cost=self.MEMORY_MB * 1024, parallelism=1)
        ann = {"name": "ann", "password_hash": real.hash(PASSWORD), "role": "operator"}
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[ann], forwarded_from=["127.0.0.1"]) as web:
            visitors = [from_address(web, f"192.0.2.{n}") for n in range(self.AT_ONCE)]
            tokens = [visitor.token() for visitor in visitors]
            before = most_memory_mb(web)
            with ThreadPoolExecutor(self.AT_ONCE) as pool:
                answers = list(
                    pool.map(
                        lambda n: visitors[n].post(
                            "/login", {"name": f"guess{n}", "password": "x"}, tokens[n]
                        ),
                        range(self.AT_ONCE),
                    )
                )
            statuses = {answer.status for answer in answers}
            assert 403 in statuses
            assert statuses <= {403, 503}
            for answer in answers:
                assert answer.status != 503 or int(answer.headers["Retry-After"]) > 0
            grown = most_memory_mb(web) - before
            assert self.MEMORY_MB / 2 < grown < 2.5 * self.MEMORY_MB
            assert web.get("/healthz").status == 200
            assert visitors[0].log_in("ann").status == 303


class TestWhereItGoesOn:
    @pytest.mark.parametrize(
        "target",
        [
            "https://evil.example/",
            "//evil.example/",
            "/\\evil.example/",
            "\\\\evil.example/",
            "/\t/evil.example/",
            "/\n/evil.example/",
            "javascript:alert(1)",
            "queues",
            "/..//evil.example",
            "/\u2215evil.example",
        ],
    )
    def test_it_never_leads_elsewhere(self, web, target):
        visitor = Visitor(web)
        assert visitor.log_in("ann", next=target).headers["Location"] == "/"

    def test_the_form_holds_no_address_of_others_either(self, web):
        page = Visitor(web).get("/login?next=https://evil.example/").data.decode()
        assert "evil.example" not in page
