"""What the role writes for self-hosted Sentry: by itself, and against the release that it is for.

KESTREL_STACK_SENTRY_RELEASE names a checkout of getsentry/self-hosted at the pinned tag; without it, and
without docker's compose plugin, those tests are skipped by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support import role_parts
from support.host_programs import CHECKOUT, load

ROLE = CHECKOUT / "ansible/roles/sentry"
PROGRAM = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-sentry"
RELEASE = os.environ.get("KESTREL_STACK_SENTRY_RELEASE", "")
NAMES = ("env.custom", "config.yml", "docker-compose.override.yml", "sentry.conf.block.py")
KEY = "k" * 64
SAID = {
    "kestrel_stack_app": "shop",
    "kestrel_stack_address": "10.0.0.9",
    "sentry_backend": "self_hosted",
    "sentry_url": "https://errors.example.com:8443",
    "sentry_admin_email": "anna@example.com",
    "sentry_retention_days": 30,
    "sentry_self_hosted_kafka_retention_hours": 2,
    "sentry_self_hosted_kafka_retention_megabytes": 512,
    "sentry_self_hosted_conf": 'SENTRY_FEATURES["organizations:discover"] = False\n',
    "sentry_self_hosted_override": {"services": {"web": {"labels": {"mine": "yes"}}}},
    "sentry_mail": {
        "host": "mail.example.com",
        "port": 587,
        "from": "Errors <errors@example.com>",
        "user": "errors",
        "password": 'it\'s: #a "mail" password',
    },
}
needs_release = pytest.mark.skipif(
    not RELEASE, reason="KESTREL_STACK_SENTRY_RELEASE names no checkout of the release"
)


# As it comes: no mail, no TLS, an address of IPv6; and more for Kafka than one of its segments may have.
BARE = {
    "sentry_url": "",
    "sentry_mail": {},
    "sentry_self_hosted_conf": "",
    "sentry_listen_address": "::1",
    "sentry_self_hosted_override": {},
    "sentry_self_hosted_kafka_retention_megabytes": 20000,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Render the templates as the role does, with much set and with little: one run of Ansible for both."""
    folder = tmp_path_factory.mktemp("rendered")
    plays = []
    for kind, said in {"rendered": SAID, "bare": {**SAID, **BARE}}.items():
        (folder / kind).mkdir()
        task = {
            "ansible.builtin.template": {
                "src": f"{CHECKOUT}/templates/opt/sentry/wanted/{{{{ item }}}}.j2",
                "dest": f"{folder}/{kind}/{{{{ item }}}}",
                "mode": "0600",
            },
            "loop": list(NAMES),
            "vars": said,
        }
        files = [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml", "vars/self_hosted.yml")]
        plays.append(
            {
                "hosts": "localhost",
                "connection": "local",
                "gather_facts": False,
                "vars_files": files,
                "tasks": [task],
            }
        )
    role_parts.run(folder, plays, "localhost,", {})
    return {
        kind: {name: (folder / kind / name).read_text() for name in NAMES} for kind in ("rendered", "bare")
    }


@pytest.fixture(scope="module")
def rendered(both):
    return both["rendered"]


@pytest.fixture(scope="module")
def bare(both):
    return both["bare"]


def run_block(text):
    """Run a block as the end of sentry.conf.py; return what it set."""
    found = {"SENTRY_OPTIONS": {}, "SENTRY_FEATURES": {}}
    exec(text, found)
    return found


def test_bash_reads_the_settings_as_they_are_meant(rendered, bare, tmp_path):
    (tmp_path / "env").write_text(rendered["env.custom"])
    names = "COMPOSE_PROFILES SENTRY_BIND SENTRY_EVENT_RETENTION_DAYS SENTRY_MAIL_HOST"
    shown = " ".join(f"${name}" for name in names.split())
    done = subprocess.run(
        ["bash", "-euc", f"set -a; . ./env; echo {shown}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["errors-only", "127.0.0.1:9000", "30", "example.com"]
    assert "SENTRY_BIND=[::1]:9000\n" in bare["env.custom"]


def test_the_block_sets_what_it_says(rendered, bare):
    assert rendered["sentry.conf.block.py"].startswith("# BEGIN KESTREL STACK\n")
    assert rendered["sentry.conf.block.py"].rstrip().endswith("\n# END KESTREL STACK")
    found = run_block(rendered["sentry.conf.block.py"])
    assert found["SENTRY_BEACON"] is False
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://errors.example.com:8443"]
    assert found["SESSION_COOKIE_SECURE"] is found["CSRF_COOKIE_SECURE"] is True
    assert found["SENTRY_OPTIONS"] == {"mail.from": "Errors <errors@example.com>"}
    assert found["SENTRY_FEATURES"] == {"organizations:discover": False}
    # By http a secure cookie would never come back.
    found = run_block(bare["sentry.conf.block.py"])
    assert "SESSION_COOKIE_SECURE" not in found and found["SENTRY_BEACON"] is False
    assert found["CSRF_TRUSTED_ORIGINS"] == ["http://[::1]:9000"]


def test_the_options_are_yaml_whatever_is_in_them(rendered, bare):
    options = yaml.safe_load(rendered["config.yml"])
    assert options["mail.password"] == 'it\'s: #a "mail" password'
    assert (options["mail.port"], options["mail.use-tls"]) == (587, True)
    assert options["system.url-prefix"] == "https://errors.example.com:8443"
    assert options["auth.allow-registration"] is False
    assert yaml.safe_load(bare["config.yml"])["mail.backend"] == "dummy"


def test_the_override_has_ours_and_the_inventorys(rendered, bare):
    services = yaml.safe_load(rendered["docker-compose.override.yml"])["services"]
    assert services["kafka"]["environment"] == {
        "KAFKA_LOG_RETENTION_HOURS": "2",
        "KAFKA_LOG_RETENTION_BYTES": str(512 << 20),
        "KAFKA_LOG_SEGMENT_BYTES": str(128 << 20),
    }
    assert services["web"] == {"labels": {"mine": "yes"}}
    # Kafka does not start with a number of more than 31 bits here.
    kafka = yaml.safe_load(bare["docker-compose.override.yml"])["services"]["kafka"]["environment"]
    assert kafka["KAFKA_LOG_RETENTION_BYTES"] == str(20000 << 20)
    assert kafka["KAFKA_LOG_SEGMENT_BYTES"] == str(1 << 30)


@pytest.fixture
def release(rendered, tmp_path):
    """The release's files with ours beside them, as the program puts them."""
    folder = tmp_path / "release"
    shutil.copytree(RELEASE, folder, ignore=shutil.ignore_patterns(".git"))
    example = (folder / "sentry/sentry.conf.example.py").read_text()
    (folder / "sentry/sentry.conf.py").write_text(f"{example.rstrip()}\n\n{rendered['sentry.conf.block.py']}")
    (folder / "sentry/config.yml").write_text(rendered["config.yml"])
    (folder / "docker-compose.override.yml").write_text(rendered["docker-compose.override.yml"])
    (folder / ".env.custom").write_text(f"{rendered['env.custom']}SENTRY_SYSTEM_SECRET_KEY={KEY}\n")
    return folder


@needs_release
def test_the_pinned_version_is_the_release(release):
    version = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["sentry_self_hosted_version"]
    assert f"SENTRY_IMAGE=ghcr.io/getsentry/sentry:{version}\n" in (release / ".env").read_text()
    if (Path(RELEASE) / ".git").exists():
        commit = yaml.safe_load((ROLE / "defaults/main.yml").read_text())["sentry_self_hosted_commit"]
        tags = {**load(PROGRAM).STOPS, version: commit}
        for tag, wanted in tags.items():
            found = subprocess.run(
                ["git", "-C", RELEASE, "rev-parse", f"refs/tags/{tag}^{{commit}}"],
                capture_output=True,
                text=True,
            )
            assert found.stdout.strip() == wanted, tag


@needs_release
def test_the_minimums_are_the_installers(release):
    text = (release / "install/_min-requirements.sh").read_text()
    needs = load(PROGRAM).NEEDS
    for name in ("docker", "compose", "bash"):
        assert f"MIN_{name.upper()}_VERSION='{needs[name]}'" in text
    assert re.findall(r"MIN_RAM_HARD=([0-9]+)", text) == ["7000", "14000"]
    assert re.findall(r"MIN_CPU_HARD=([0-9]+)", text) == ["2", "4"]
    assert [needs[name]["memory_mb"] for name in ("errors-only", "feature-complete")] == [7000, 14000]
    assert [needs[name]["cpus"] for name in ("errors-only", "feature-complete")] == [2, 4]


@needs_release
def test_the_installer_and_the_scripts_know_every_argument(release):
    tool = load(PROGRAM)
    known = (release / "install/parse-cli.sh").read_text()
    for argument in tool.INSTALLER[1:]:
        assert f"\n  {argument}) " in known
    for script in ("backup", "restore"):
        text = (release / f"scripts/{script}.sh").read_text()
        for argument in tool.QUIET:
            assert f"\n  {argument}) " in text
    assert "/sentry-data/backup/backup.json" in (release / "scripts/_lib.sh").read_text()


@needs_release
def test_every_option_of_the_releases_example_is_ours_too(release):
    theirs = yaml.safe_load((release / "sentry/config.example.yml").read_text())
    ours = yaml.safe_load((release / "sentry/config.yml").read_text())
    # The key is in .env.custom, and mail goes where the inventory says.
    differing = {name for name, value in theirs.items() if ours.get(name) != value}
    assert differing == {"system.secret-key", "mail.host"}
    assert load(PROGRAM).keys((release / "sentry/config.example.yml").read_text()) == list(theirs)


@needs_release
def test_sentry_conf_is_the_releases_own_and_needs_none_of_the_installers_changes(release):
    text = (release / "sentry/sentry.conf.py").read_text()
    compile(text, "sentry.conf.py", "exec")
    example = (release / "sentry/sentry.conf.example.py").read_text()
    assert load(PROGRAM).outside(text).rstrip() == example.rstrip()
    assert ".ReconnectingMemcache" in text and '"HOST": "pgbouncer"' in text
    # Names that are set at the end are names that the example speaks of; the first is Sentry's own default's.
    block = text.partition("# BEGIN KESTREL STACK")[2]
    for name in set(re.findall(r"^([A-Z_]+)\b", block, re.MULTILINE)) - {"SENTRY_BEACON"}:
        assert name in example, name


@needs_release
def test_every_setting_is_one_that_the_release_reads(release):
    text = "".join((release / name).read_text() for name in (".env", "docker-compose.yml"))
    for line in (release / ".env.custom").read_text().splitlines():
        if line and not line.startswith("#"):
            assert line.partition("=")[0] in text
    assert "LAUNCHPAD_RPC_SHARED_SECRET=" in (release / ".env").read_text()


@needs_release
def test_the_containers_that_keep_something_are_all_in_a_full_backup(release):
    composed = yaml.safe_load((release / "docker-compose.yml").read_text())
    outside = {name for name, said in composed["volumes"].items() if (said or {}).get("external")}
    assert outside <= set(load(PROGRAM).VOLUMES)


@needs_release
def test_compose_takes_it_all(release):
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("docker has no compose plugin here")
    done = subprocess.run(
        [*load(PROGRAM).COMPOSE, "config", "--format", "json"], cwd=release, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    # Of a profile that is not asked for, nothing.
    assert "kafka" in services and "web" in services and "snuba-replays-consumer" not in services
    kafka = services["kafka"]["environment"]
    assert kafka["KAFKA_LOG_RETENTION_HOURS"] == "2"
    assert kafka["KAFKA_LOG_RETENTION_BYTES"] == str(512 << 20)
    assert kafka["KAFKA_PROCESS_ROLES"] == "broker,controller"
    (port,) = services["nginx"]["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", "9000")
    web = services["web"]["environment"]
    assert web["SENTRY_SYSTEM_SECRET_KEY"] == KEY
    assert web["SENTRY_EVENT_RETENTION_DAYS"] == "30"
    assert services["web"]["labels"] == {"mine": "yes"}


@needs_release
def test_the_releases_own_installer_asks_nothing_and_leaves_our_files(host, rendered):
    """The real install.sh, whose docker is a stand-in: no image is fetched, no container runs."""
    if not (Path(RELEASE) / ".git").exists():
        pytest.skip("the checkout of the release has no .git")
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    version, commit = (defaults[f"sentry_self_hosted_{name}"] for name in ("version", "commit"))
    host.want(version, commit=commit, repository=f"file://{Path(RELEASE).resolve()}")
    for name in NAMES:
        text = rendered[name].replace("127.0.0.1:9000", f"127.0.0.1:{host.port}")
        (host.root / "wanted" / name).write_text(text)
    assert host.done("apply")["did"] == "installed"
    log = (host.root / "install.log").read_text()
    for said in (
        "Checking minimum requirements",
        "ReconnectingMemcache found in",
        "Found pgbouncer in",
        "You're all done!",
    ):
        assert said in log
    calls = host.called()
    assert any("web upgrade --noinput --create-kafka-topics" in call for call in calls)
    assert not any("pull getsentry/sentry-cli" in call for call in calls)
    (host.tree / "relay/credentials.json").stat()
    # Nothing that was written was changed, so that the next run has nothing to do.
    assert host.done("apply")["changed"] is False
    # And the real scripts/backup.sh: nothing is asked, and nothing is stopped.
    since = len(host.calls())
    assert host.done("backup")["full"] is False
    called = host.called()[since:]
    assert any(f"{host.tree}/sentry:/sentry-data/backup" in call for call in called)
    assert not any(" stop " in call for call in called)
