"""The filter that one types: what it means, and what is said about one that means nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web import keys
from kestrel_stack.web.model import Alert, QueueNumbers, QueueRow, View
from kestrel_stack.web.tables import columns, filters


def row(
    name: str, *children: QueueRow, kind: str = "queue", alerts=(), servers=("a:1",), **numbers
) -> QueueRow:
    return QueueRow(
        keys.make(name.encode()),
        kind=kind,
        numbers=QueueNumbers(**numbers),
        children=children,
        alerts=tuple(Alert(alert, name, alert) for alert in alerts),
        servers=dict.fromkeys(servers, QueueNumbers()),
    )


MAIL = row(
    "shop_mail",
    row("shop_mail_errors", kind="errors", items=3),
    items=1500,
    bytes=70 << 20,
    age_ms=400_000,
    rate_in=0.5,
    alerts=("age",),
)
PRESS = row("press", items=3, age_ms=2000, servers=("b:2", "c:3"))
ODD = row("Größe+x,y", items=0)
VIEW = View(queues=(MAIL, ODD, PRESS))


def names(text: str) -> list[str]:
    return [each.key for each in columns.arrange(VIEW, filters.parse(text))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [MAIL, ODD, PRESS]),
        ("items>1000", [MAIL]),
        ("items>1k", [MAIL]),
        ("items>=1.5K", [MAIL]),
        ("items > 1000", [MAIL]),
        ("items=3", [MAIL, PRESS]),  # the errors of mail are 3
        ("items!=3 kind=queue", [MAIL, ODD]),
        ("items<1", [ODD]),
        ("items<=3 items>0", [MAIL, PRESS]),
        ("bytes>64MB", [MAIL]),
        ("bytes>64m", [MAIL]),
        ("bytes>1", [MAIL]),
        ("age>5m", [MAIL]),
        ("age<=2s,age>1500ms", [PRESS]),
        ("in>0", [MAIL]),
        ("in!=0.5", [MAIL, ODD, PRESS]),  # what is not known is not 0.5
        ("in<100", [MAIL]),  # what is not known is not less
        ("parked>2", [MAIL]),
        ("name~^shop", [MAIL]),
        ("name~SHOP", [MAIL]),
        ("queue=PRESS", [PRESS]),
        ("name!=press", [MAIL, ODD]),
        ("mail", [MAIL]),
        ("ma.l", [MAIL]),
        ("größe", [ODD]),
        ('"x,y"', [ODD]),
        ('name="größe+x,y"', [ODD]),
        ("server=b:2", [PRESS]),
        ("server~^c", [PRESS]),
        ("server!=a:1", [PRESS]),
        ("alert=age", [MAIL]),
        ("alert~.", [MAIL]),
        ("kind=errors", [MAIL]),
        ("logsize>0", []),
        ("name~nothing", []),
        (" , items>1000 , mail , ", [MAIL]),
    ],
)
def test_a_filter_leaves_the_rows_that_fulfil_all_of_its_terms(text, found):
    assert sorted(names(text)) == sorted(each.key for each in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("itms>3", ["'itms>3'", "no field 'itms'", "did you mean items?"]),
        ("qqq=1", ["no field 'qqq'", "there are name, items"]),
        ("items>", ["'items>'", "no value"]),
        ("items>abc", ["'items>abc'", "no number for items", "1.5k"]),
        ("items>5MB", ["no number for items", "k, m, g"]),
        ("age>5MB", ["no number for age", "5m", "ms, s, m"]),
        ("items>-1", ["no number"]),
        ("items~3", ["~ is for text"]),
        ("name>a", ["> is for numbers", "="]),
        ("name~[", ["'name~['", "not a regular expression"]),
        ("name~(?i)a", ["'name~(?i)a'", "not a regular expression: of what begins with (?"]),
        ("name~" + "a" * 101, ["101 characters", "100"]),
        (">5", ["no field before"]),
        ('"open', ["quotation mark"]),
        ("items>1" + " " * 500 + "items<3", ["characters", "500"]),
    ],
)
def test_a_wrong_filter_is_refused_in_one_line_that_names_the_term(text, said):
    with pytest.raises(filters.FilterError) as caught:
        filters.parse(text)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


def test_terms_can_be_taken_out_one_by_one():
    chosen = filters.parse("items>1k, mail age<5m")
    assert [term.text for term in chosen.terms] == ["items>1k", "mail", "age<5m"]
    assert chosen.without(chosen.terms[1]) == "items>1k age<5m"
    assert str(filters.parse(str(chosen))) == str(chosen)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_one_clear_line(text):
    try:
        chosen = filters.parse(text)
    except filters.FilterError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert [each.text for each in filters.parse(str(chosen)).terms] == [
            each.text for each in chosen.terms
        ]
        columns.arrange(VIEW, chosen)
