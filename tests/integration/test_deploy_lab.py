"""fab against two hosts over real SSH: the way everything goes well."""

import json

import pytest

from support.deploy_lab import GROUPS, HOSTS, PROCESSES, app, lab  # noqa: F401 - fixtures

pytestmark = pytest.mark.docker


def test_a_first_deploy_starts_every_worker_from_the_new_release(lab, app):  # noqa: F811
    done = lab.deploy(app)
    assert done.code == 0, done.text
    release = lab.current("worker1")
    lab.assert_runs(release)
    lab.assert_clean()
    about = json.loads(lab.on("worker2", "cat /srv/shop/current/release.json"))
    assert about["release"] == release
    assert about["rev"] == app.commit_id
    assert about["ref"] == "HEAD"
    record = json.loads(lab.on("worker2", "tail -n 1 /srv/shop/deploys.jsonl"))
    assert (record["result"], record["release"], record["previous"]) == ("ok", release, None)
    assert f"Deployed {release} on 2 hosts" in done.text
    # What the roles promise holds for what the deploy made: workers cannot write code, and can write var.
    denied = lab.on(
        "worker1", "sudo -u worker touch /srv/shop/current/x /srv/shop/current/venv/x 2>&1 || true"
    )
    assert denied.count("Permission denied") == 2
    lab.on("worker1", "sudo -u worker touch /srv/shop/current/var/x")


def test_the_same_again_is_nothing_to_do_and_by_force_a_new_release(lab, app):  # noqa: F811
    release = lab.deployed(app)
    again = lab.deploy(app)
    assert again.code == 0
    assert "Nothing to do" in again.text
    assert lab.current("worker1") == release
    forced = lab.deployed(app, "--force", "--limit=worker2")
    assert forced > release
    lab.assert_runs(release, "worker1")
    lab.assert_runs(forced, "worker2")
    lab.assert_clean()


def test_a_job_is_done_by_the_new_code_and_after_a_rollback_by_the_old(lab, app):  # noqa: F811
    def job_is_done_by(text):
        for host in HOSTS:
            lab.on(host, "rm -f /srv/shop/shared/var/done")
        lab.on(
            "worker1",
            "cd /srv/shop/current && sudo -u worker venv/bin/python -c '"
            "from kestrel_stack.queue import Producer;"
            ' Producer.from_settings("acme").enqueue("HelloWorld")\'',
        )
        read = "cat /srv/shop/shared/var/done 2>/dev/null || true"
        lab.wait_until(lambda: any(lab.on(host, read) for host in HOSTS))
        assert [said for host in HOSTS if (said := lab.on(host, read))] == [text]

    first = lab.deployed(app)
    job_is_done_by("VERSION")
    app.write("shop/jobs.py", (app.path / "shop/jobs.py").read_text().replace("VERSION", "CHANGED"))
    app.commit()
    second = lab.deployed(app)
    assert second > first
    job_is_done_by("CHANGED")
    back = lab.fab("rollback")
    assert back.code == 0, back.text
    lab.assert_runs(first)
    lab.assert_clean()
    job_is_done_by("VERSION")
    none = lab.fab("rollback")
    assert none.code == 1
    assert f"there is no release before {first}" in none.text
    unknown = lab.fab("rollback", "--to=20200101T000000Z-00000000")
    assert unknown.code == 1
    assert f"is not there; all hosts can go to: {first}, {second}" in unknown.text


def test_status_and_releases_show_how_every_host_stands(lab, app):  # noqa: F811
    nothing = lab.fab("status")
    assert nothing.code == 0
    assert nothing.text.count("none yet: run fab deploy") == 2
    assert "run fab deploy" in lab.fab("releases").text
    release = lab.deployed(app)
    data = json.loads(lab.fab("status", "--json").text)
    assert [host["host"] for host in data["hosts"]] == list(HOSTS)
    for host in data["hosts"]:
        assert (host["release"], host["rev"], host["verified"], host["lock"]) == (
            release,
            app.commit_id,
            True,
            None,
        )
        assert [(group["group"], group["running"]) for group in host["groups"]] == [
            (group, PROCESSES[group]) for group in GROUPS
        ]
    shown = lab.fab("status").text
    # Each host's row, and who deployed last.
    assert shown.count(release) == 3
    assert f"Last: deploy of {release}" in shown
    assert shown.count("shop_hello_world 2/2, shop_mail 1/1") == 2
    assert "\x1b" not in shown
    row = next(line for line in lab.fab("releases").text.splitlines() if release in line)
    assert row.count("worker1, worker2") == 2


@pytest.mark.long
def test_a_dry_run_changes_nothing_whichever_flag_asks_for_it(lab, app):  # noqa: F811
    for words in (("deploy", f"--app={app.path}", "--dry-run"), ("--dry", "deploy", f"--app={app.path}")):
        done = lab.fab(*words)
        assert done.code == 0, done.text
        assert "Dry run: nothing was changed" in done.text
        assert "would drain and start: shop_hello_world, shop_mail" in done.text
    for host in HOSTS:
        assert lab.on(host, "ls -A /srv/shop/releases; ls -A /srv/shop | grep -v -x -e releases -e shared"
                            " -e venvs -e .switching || true") == ""  # fmt: skip


def test_old_releases_and_their_venvs_are_removed_but_never_the_previous_one(lab, app):  # noqa: F811
    app.write("deploy.yml", (app.path / "deploy.yml").read_text().replace("keep: 5", "keep: 2"))
    app.commit()
    made = [lab.deployed(app, "--limit=worker2")]
    # What a dead deploy left behind, and a venv that nothing uses.
    lab.on(
        "worker2",
        "cd /srv/shop && sudo -u deploy mkdir -p releases/.20200101T000000Z-00000000.partial venvs/unused"
        " && sudo -u deploy touch venvs/unused/.complete",
    )
    for _ in range(2):
        made.append(lab.deployed(app, "--limit=worker2", "--force"))
    kept = lab.on("worker2", "ls -A /srv/shop/releases").split()
    assert kept == made[1:]
    used = {lab.on("worker2", f"basename $(readlink /srv/shop/releases/{name}/venv)") for name in kept}
    assert set(lab.on("worker2", "ls /srv/shop/venvs").split()) == used


@pytest.mark.long
def test_a_rollback_can_go_forward_again_to_a_named_release(lab, app):  # noqa: F811
    first = lab.deployed(app)
    second = lab.deployed(app, "--force")
    for there in (first, second):
        done = lab.fab("rollback", f"--to={there}")
        assert done.code == 0, done.text
        lab.assert_runs(there)
        lab.assert_clean()
    again = lab.fab("rollback", f"--to={second}")
    assert again.code == 0
    assert "Nothing to do" in again.text


@pytest.mark.long
def test_fab_works_in_a_folder_below_the_checkout(lab, app):  # noqa: F811
    from support.deploy import ROOT

    done = lab.fab("status", cwd=ROOT / "src" / "kestrel_stack")
    assert done.code == 0, done.text
