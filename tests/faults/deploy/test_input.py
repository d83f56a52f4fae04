"""What a person may get wrong: refused in one line, before anything is changed."""

import pytest

from support.deploy import ROOT, git

pytestmark = pytest.mark.docker


def assert_refused(lab, first, done, *words):
    """Exit 1, one line that has all these words, and every host as it was."""
    assert done.code == 1, done.text
    said = [line for line in done.text.splitlines() if line.startswith("fab: ")]
    assert len(said) == 1, done.text
    for word in words:
        assert word in said[0]
    lab.assert_clean()
    assert {lab.current(host) for host in ("worker1", "worker2")} == {first}


@pytest.mark.long
def test_an_unknown_ref(lab, app, first):
    """Unknown ref"""
    assert_refused(lab, first, lab.deploy(app, "--ref=no-such-branch"), "no-such-branch")


def test_a_ref_that_is_a_command(lab, app, first, tmp_path):
    """A ref named `; touch pwned`"""
    # git would not make such a branch, but a file is one.
    (app.repository / ".git/refs/heads/; touch pwned").write_text(app.commit_id + "\n")
    here = tmp_path / "here"
    here.mkdir()
    done = lab.deploy(app, "--ref=; touch pwned")
    assert_refused(lab, first, done, "; touch pwned")
    assert_no_file_of_that_name(lab, app)


BRANCH = """;touch${IFS}pwned;`touch${IFS}pwned`$(touch${IFS}pwned)'"&|>pwned"""


@pytest.mark.long
def test_a_branch_whose_legal_name_is_a_command(lab, app, first):
    """A branch whose name git allows and a shell would run"""
    git(app.repository, "checkout", "-q", "-b", BRANCH)
    app.write("shop/more.py", "X = 2\n")
    app.commit()
    release = lab.deployed(app, f"--ref={BRANCH}")
    lab.assert_runs(release)
    assert_no_file_of_that_name(lab, app)
    assert BRANCH in lab.fab("releases").text
    assert_no_file_of_that_name(lab, app)


def assert_no_file_of_that_name(lab, app):
    made = [path for path in app.repository.rglob("*pwned*") if ".git" not in path.parts]
    assert made == []
    assert not list(ROOT.glob("*pwned*"))
    for host in ("worker1", "worker2"):
        assert lab.inside(host, "find / -xdev -name '*pwned*' -not -path '/proc/*' 2>/dev/null || true") == ""


def test_a_dirty_tree(lab, app, first):
    """Uncommitted changes"""
    app.write("shop/more.py", "X = 'not committed'\n")
    assert_refused(lab, first, lab.deploy(app), "uncommitted")


@pytest.mark.long
def test_an_unknown_host_in_the_limit(lab, app, first):
    """Unknown host in --limit"""
    assert_refused(lab, first, lab.deploy(app, "--limit=worker1,worker9"), "worker9", "worker1, worker2")


@pytest.mark.long
def test_an_unknown_key_in_deploy_yml(lab, app, first):
    """Unknown key in deploy.yml"""
    app.write("deploy.yml", (app.path / "deploy.yml").read_text() + "hoks: {check: 'true'}\n")
    app.commit()
    assert_refused(lab, first, lab.deploy(app), "deploy.yml", "hoks")
