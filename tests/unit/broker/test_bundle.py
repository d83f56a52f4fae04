"""What a bundle's file is while several make it."""

from __future__ import annotations

from pathlib import Path

from kestrel_stack.broker import bundle


def test_two_that_make_the_same_bundle_at_the_same_time_do_not_disturb_each_other(tmp_path, monkeypatch):
    original, others = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        if not others:
            # A second one begins, and ends, just before the first has its name.
            others.append(None)
            others[0] = bundle.keep(tmp_path, "program", b"content")
        return original(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    made = bundle.keep(tmp_path, "program", b"content")
    assert others == [made]
    assert made.read_bytes() == b"content"
    assert made.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [made]
