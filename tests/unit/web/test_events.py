"""The link from a parked job to its event: which addresses are taken, and what is never put into one."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web import events

PLAIN = "fc6d8c0c43fc4630ad850ee518f1b9d0"
HYPHENS = "fc6d8c0c-43fc-4630-ad85-0ee518f1b9d0"
BUGSINK = "https://errors.example.org/issues/event/{event_uuid}/"
SENTRY = "https://sentry.example.org/organizations/acme/projects/shop/events/{event_id}/"


@pytest.mark.parametrize("event", [PLAIN, HYPHENS, PLAIN.upper(), HYPHENS.upper()])
def test_an_event_is_put_in_as_its_backend_wants_it(event):
    assert events.address(BUGSINK, event) == f"https://errors.example.org/issues/event/{HYPHENS}/"
    assert events.address(SENTRY, event) == SENTRY.replace("{event_id}", PLAIN)


def test_without_an_address_or_without_an_event_there_is_no_link():
    assert events.address("", PLAIN) is None
    assert events.address(BUGSINK, None) is None


HOSTILE = [
    "",
    "–",
    "javascript:alert(1)",
    "<script>alert(1)</script>",
    f'{PLAIN}"onclick="alert(1)',
    f"{PLAIN}'",
    f"{PLAIN}\n",
    f" {PLAIN}",
    f"{PLAIN}/../../logout",
    PLAIN[:-1],
    PLAIN + "0",
    "g" + PLAIN[1:],
    PLAIN.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
    PLAIN.replace("f", "\N{FULLWIDTH LATIN SMALL LETTER F}"),
    HYPHENS.replace("-", "\N{HYPHEN}"),
    HYPHENS[:8] + HYPHENS[9:],
    "{" + HYPHENS + "}",
    f"urn:uuid:{HYPHENS}",
    "-" * 36,
    "{event_uuid}",
    "{event_id}",
    PLAIN * 313,
    "%00" + PLAIN[3:],
]


@pytest.mark.parametrize("event", HOSTILE)
def test_what_is_no_events_id_is_never_linked(event):
    assert events.address(BUGSINK, event) is None
    assert events.address(SENTRY, event) is None


@given(st.text() | st.text(alphabet=string.hexdigits + "-", min_size=30, max_size=38))
def test_nothing_but_hexadecimal_digits_and_hyphens_gets_into_a_link(event):
    made = events.address(BUGSINK, event)
    front, _, back = BUGSINK.partition("{event_uuid}")
    if made is not None:
        middle = made.removeprefix(front).removesuffix(back)
        assert made == front + middle + back
        assert set(middle) <= set("0123456789abcdef-")
        assert len(middle) == 36


@pytest.mark.parametrize(
    "template",
    [
        BUGSINK,
        SENTRY,
        "http://127.0.0.1:8765/issues/event/{event_uuid}/",
        "http://[::1]:8765/e/{event_id}",
        "https://sentry.io/acme/?query={event_id}&project=5",
        "https://h/#{event_id}",
    ],
)
def test_addresses_that_are_taken(template):
    assert events.problem(template) is None


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("https://h/issues/", "once"),
        ("https://h/{event_id}/{event_id}", "once"),
        ("https://h/{event_id}/{event_uuid}", "once"),
        ("https://h/{event}", "once"),
        ("https://h/{event_id}/{x}", "an address like"),
        ("https://h/{{event_id}}", "an address like"),
        ("https://{event_id}.example.org/", "an address like"),
        ("https://h:{event_id}/", "an address like"),
        ("{event_id}://h/", "an address like"),
        ("javascript:alert('{event_id}')", "an address like"),
        ("JavaScript://h/%0aalert(1)//{event_id}", "an address like"),
        ("data:text/html,{event_id}", "an address like"),
        ("//h/{event_id}", "an address like"),
        ("/issues/{event_id}", "an address like"),
        ("https:///{event_id}", "an address like"),
        ("https://h:0/{event_id}", "an address like"),
        ("https://h:99999/{event_id}", "an address like"),
        ("https://[h/{event_id}", "an address like"),
        ("https://h/ {event_id}", "an address like"),
        ("https://h/\t{event_id}", "an address like"),
        ('https://h/"{event_id}', "an address like"),
        ("https://h/<b>{event_id}", "an address like"),
        ("https://h\\@g/{event_id}", "an address like"),
        ("https://h/ä{event_id}", "an address like"),
        ("https://me:secret@h/{event_id}", "no user and no password"),
        ("https://me@h/{event_id}", "no user and no password"),
    ],
)
def test_addresses_that_are_refused_with_what_is_wrong(template, said):
    found = events.problem(template)
    assert said in found
    assert "secret" not in found
