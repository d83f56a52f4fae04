"""Whatever docs/operations.md names is there: commands and options, variables, paths, units, links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from invoke import Collection

from kestrel_stack.queue.flags import UsageError
from kestrel_stack.queue.jobs import cli
from operations import runbook, troubles
from support.deploy import ROOT

TEXT = runbook.DOCUMENT.read_text(encoding="utf-8")
CHAPTERS = runbook.document()
STEPS = [step for chapter in CHAPTERS for step in chapter.steps]
COMMANDS = [command for step in STEPS if step.kind in ("step", "by hand") for command, _ in step.commands]
SBIN = ROOT / "templates/usr/local/sbin"
# What Debian and its programs bring.
SYSTEMS_OWN = re.compile(
    r"/(tmp|mnt|dev|proc|root|srv/backup|etc/(ssh|hosts|fstab|supervisor|ssl)|var/(log|backups|lib)|usr/bin|home)?(/|\Z)"
)


def product() -> str:
    """The text of everything that writes to hosts."""
    files = [
        *ROOT.glob("templates/**/*"),
        *ROOT.glob("ansible/roles/**/*"),
        *ROOT.glob("src/kestrel_stack/**/*.py"),
    ]
    return "\n".join(
        file.read_text(encoding="utf-8") for file in files if file.is_file() and file.suffix != ".pyc"
    )


PRODUCT = product()


def remote(span: str) -> str:
    """What a command runs on a host: what follows ssh's options and the host's name, or ansible's -a."""
    try:
        words = shlex.split(span)
    except ValueError:
        return span
    if words[:1] == ["ansible"] and "-a" in words:
        return words[words.index("-a") + 1]
    if words[:1] != ["ssh"]:
        return span
    rest = iter(words[1:])
    for word in rest:
        if word in ("-i", "-o", "-L"):
            next(rest)
        elif not word.startswith("-"):
            break
    left = list(rest)
    # Several words are quoted words; one is a line for the host's shell.
    return left[0] if len(left) == 1 else shlex.join(left)


def words_of(program: str) -> list[list[str]]:
    """The arguments with which the document calls a program, in fences and in the text."""
    spans = [*COMMANDS, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))]
    found = []
    for span in spans:
        for part in re.split(r"\s*(?:\|\|?|&&|;)\s+", remote(span.replace("…", ""))):
            match = re.match(
                rf"(?:sudo\s+(?:-u \w+\s+)?)?{re.escape(program)}(?:\s+(.*)|\Z)", part.strip(), re.DOTALL
            )
            if match:
                # What is inside of a shell's quotes ends with them.
                words = match[1] or ""
                found.append(shlex.split(words.rstrip("'") if words.count("'") % 2 else words))
    return found


@cache
def fab() -> Collection:
    spec = importlib.util.spec_from_file_location("fabfile", ROOT / "fabfile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Collection.from_module(module)


def test_the_document_can_be_followed():
    assert CHAPTERS
    assert all(step.commands for step in STEPS if step.kind == "step")
    names = [step.words[0] for step in STEPS if step.kind in ("step", "edit", "remove")]
    assert sorted(names) == sorted(set(names)), "a step's name is there twice"


def test_troubles_are_known():
    assert {step.words[0] for step in STEPS if step.kind == "trouble"} <= set(troubles.KNOWN)


def test_fab():
    calls = words_of("fab")
    assert len(calls) > 10
    for words in calls:
        assert words[0] in fab().task_names, words
        options = {option for argument in fab()[words[0]].get_arguments() for option in argument.names}
        for word in words[1:]:
            if word.startswith("--"):
                name = word[2:].partition("=")[0].replace("-", "_")
                assert name in options, f"fab {words[0]} has no {word}"


def parses(words: list[str]) -> bool:
    try:
        cli.parser().parse_args(words)
    except UsageError:
        return False
    return True


def test_jobs():
    calls = words_of("kestrel-stack-jobs")
    assert len(calls) > 5
    for words in calls:
        # The text may leave out queue and file.
        assert any(parses([*words, *more]) for more in ([], ["q"], ["q", "f"], ["list", "q"])), words


@pytest.mark.parametrize("path", sorted(SBIN.iterdir()), ids=lambda path: path.name)
def test_programs_of_the_hosts(path: Path):
    said = path.read_text(encoding="utf-8")
    for words in words_of(path.name):
        if words and re.fullmatch(r"[a-z-]+", words[0]):
            assert re.search(rf"\b{re.escape(words[0])}\b", said), f"{path.name} knows no {words[0]}"


def test_every_program_that_is_named_is_there():
    # Those of an application have its name at the end.
    named = {name.removesuffix("-shop") for name in re.findall(r"(?<!/)\bkestrel-stack-[a-z-]+[a-z]", TEXT)}
    units = {
        path.name.removesuffix(".j2").rpartition(".")[0]
        for path in ROOT.glob("templates/etc/systemd/system/*")
    }
    there = {path.name.removesuffix(".j2") for path in ROOT.glob("templates/usr/local/*bin/*")} | units
    assert named <= there, named - there


def variables() -> set[str]:
    found = set()
    for specs in ROOT.glob("ansible/roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            found |= set(entry.get("options", {}))
    return found


def test_variables():
    prefixes = [path.name for path in ROOT.glob("ansible/roles/*") if path.name != "common"]
    prefixes += ["kestrel_stack"]
    named = set(re.findall(rf"(?<![a-z_/.-])(?:{'|'.join(prefixes)})_[a-z0-9_]+\b(?![.=/-])", TEXT))
    unknown = {name for name in named - variables() if not re.search(rf"\b{name}\b", PRODUCT)}
    assert not unknown, unknown


def test_paths():
    # A journal has its queue's name.
    text = re.sub(r"/var/spool/kestrel/(?:damaged~/)?shop_\w+", "", TEXT)
    named = set(re.findall(r"(?<![\w.~/])/(?:etc|var|srv|opt|usr|run)/[\w./-]*[\w]", text))
    assert named
    for path in sorted(named):
        generic = path.replace("/srv/shop", "/srv/").replace("/shop", "/")
        parts = [part for part in generic.strip("/").split("/") if part]
        known = (
            path in PRODUCT
            or (
                any("/" + "/".join(parts[:length]) in PRODUCT for length in range(2, len(parts)))
                and re.search(rf"\b{re.escape(parts[-1])}\b", PRODUCT)
            )
            or (path.startswith("/srv/shop/") and parts[-1] in PRODUCT)
        )
        assert known or SYSTEMS_OWN.match(path), f"nothing of ours makes {path}"


def test_units():
    ours = {path.name.removesuffix(".j2") for path in ROOT.glob("templates/etc/systemd/system/*")}
    debians = {"supervisor", "ssh", "nftables"}
    for words in words_of("systemctl"):
        for unit in (word for word in words[1:] if not word.startswith("-")):
            full = {unit, f"{unit.removesuffix('-shop')}.service"}
            assert unit.removesuffix("-shop") in debians or full & ours, f"no unit {unit}"


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_links():
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (runbook.DOCUMENT.parent / path).resolve() if path else runbook.DOCUMENT
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
