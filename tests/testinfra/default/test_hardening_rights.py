"""Who may do what on the hosts: users, groups, files, and what the deploy user may run as root."""

from __future__ import annotations

import re
import shlex

import pytest

HELPER = "/usr/local/sbin/kestrel-stack-workers"
WEB_HELPER = "/usr/local/sbin/kestrel-stack-web"
SERVICE_USERS = {
    # The users that programs of the stack run as, and every group that each is in.
    "kestrel": {"kestrel": ["kestrel"]},
    "consumers": {"worker": ["shop", "worker"]},
    "web": {"web": ["shop", "web"], "worker": ["shop", "worker"], "www-data": ["www-data"]},
    "kestrel_web": {"kestrel-web": ["kestrel-web"]},
    "sentry": {"sentry": ["sentry"]},
}
OURS = (
    "/etc/bugsink /etc/kestrel /etc/kestrel-stack /etc/kestrel-stack-sentry /etc/kestrel-web /etc/sudoers.d"
    " /etc/supervisor /etc/systemd/system /opt /usr/local /srv /run/kestrel /run/kestrel-stack-firewall"
    " /run/kestrel-stack-web /run/kestrel-stack-kestrel.lock /var/spool/kestrel /var/lib/kestrel"
    " /var/lib/kestrel-web /var/lib/bugsink /var/log/kestrel /var/log/kestrel-stack /var/log/supervisor"
    " /var/backups/bugsink"
)
"""Every place that the roles or the deploy write to."""
MODES = [
    # What a path that matches must be: mode, owner, group. The first that matches counts; none is a failure.
    # Secrets: root alone, or root and the one group whose program reads them.
    (r"/etc/bugsink/(admin\.json|token)", "600 root root"),
    (r"/etc/bugsink/project\.json", "644 root root"),  # in a folder that keeps others out
    (r"/etc/bugsink/(secret_key|bugsink_conf\.py)", "640 root sentry"),
    (r"/etc/bugsink", "750 root sentry"),
    # What a release that is being replaced ran with: it is put back with it.
    (r"/etc/(bugsink|kestrel-web)/former#d", "700 root root"),
    (r"/etc/(bugsink|kestrel-web)/former/.+", "600 root root"),
    (r"/etc/kestrel-stack-sentry", "700 root root"),
    (r"/etc/kestrel-stack-sentry/[a-z]+\.json", "600 root root"),
    (r"/etc/kestrel-web(/apps)?", "750 root kestrel-web"),
    (r"/etc/kestrel-web/(apps/)?[a-z-]+\.json", "640 root kestrel-web"),
    (r"/etc/kestrel-stack/shop\.json", "640 root shop"),
    (r"/etc/supervisor/conf\.d/kestrel-stack\.shop\.shop_alarm\.conf", "600 root root"),
    (r"/etc/sudoers\.d/[\w-]+|/etc/sudoers\.d/README", "440 root root"),
    # Configuration without secrets.
    (r"/etc/kestrel/proven|/etc/kestrel/proven/.*/.*", "750 root root"),
    (r"/etc/kestrel/firewall\.nft", "640 root root"),
    (r"/etc/kestrel(/next|/proven)?", "750 root kestrel"),
    (r"/etc/kestrel/.+", "640 root kestrel"),
    (r"/etc/(kestrel-stack|supervisor|systemd/system|sudoers\.d)(/.*/?)?#d", "755 root root"),
    (r"/etc/(kestrel-stack/shop_web|supervisor|systemd/system)/.+", "644 root root"),
    # Programs.
    (r"/(opt|usr/local)(/.*)?#d", "755 root root"),
    (r"/usr/local/s?bin/[\w-]+|/usr/local/lib/kestrel-stack/start-[\w-]+", "755 root root"),
    (r"/usr/local/(lib/kestrel-stack|share/ca-certificates)/.+", "644 root root"),
    (r"/opt/(bugsink|kestrel-web)/releases/[^/]+/venv/.+", "644|755 root root"),
    (r"/opt/(bugsink|kestrel|kestrel-web)/.+", "644 root root"),
    # What running programs write, each its own.
    (r"/run/kestrel#d", "755 kestrel kestrel"),
    (r"/run/kestrel/started\.json", "644 root kestrel"),
    (r"/run/kestrel-stack-kestrel\.lock", "640 root kestrel"),
    (r"/run/kestrel-stack-firewall#d", "700 root root"),
    (r"/run/kestrel-stack-firewall/loaded\.json", "600 root root"),
    (r"/run/kestrel-stack-web#d", "755 root root"),
    (r"/run/kestrel-stack-web/shop\.lock", "644 root root"),
    (r"/run/kestrel-stack-web/shop\.sock", "660 root www-data"),
    (r"/var/(spool|lib|log)/kestrel#d", "750 kestrel kestrel"),
    (r"/var/(spool|lib|log)/kestrel/.+", "640 kestrel kestrel"),
    (r"/var/lib/kestrel-web#d", "700 kestrel-web kestrel-web"),
    (r"/var/lib/kestrel-web/.+", "600 kestrel-web kestrel-web"),
    (r"/var/lib/bugsink#d", "750 sentry sentry"),
    (r"/var/lib/bugsink/.+#d", "700 sentry sentry"),
    (r"/var/lib/bugsink/.+", "600|640 sentry sentry"),
    (r"/var/backups/bugsink#d", "700 root root"),
    (r"/var/backups/bugsink/.+", "600 root root"),
    (r"/var/log/supervisor#d|/var/log/kestrel-stack#d", "755 root root"),
    (r"/var/log/supervisor/.+", "600|644 root root"),
    (r"/var/log/kestrel-stack/shop#d", "2750 root shop"),
    (r"/var/log/kestrel-stack/shop/.+", "644 root shop"),
    # The application: the deploy user's, but for what the workers share.
    (r"/srv#d", "755 root root"),
    (r"/srv/shop/shared/var#d", "2775 worker shop"),
    (r"/srv/shop/shared/var/.+#d", "2755|2775 (worker|web) shop"),
    (r"/srv/shop/shared/var/.+", "644|664 (worker|web|deploy) shop"),
    (r"/srv/shop(/.*)?#d", "755|2755 deploy shop"),
    (r"/srv/shop/.+", "444|555|644|755 deploy shop"),
]
# sudo asks for a password, which nobody has; or it refuses the option, the value or the path by name.
REFUSED = re.compile(
    r"a password is required|not allowed to|not permitted|invalid|command not found|unknown user|usage: sudo",
    re.IGNORECASE,
)


def hosts(stack):
    return sorted(stack.data["_meta"]["hostvars"])


@pytest.fixture(autouse=True)
def _several_hosts(stack):
    if len(hosts(stack)) == 1:
        pytest.skip("everything is on one host")


def test_who_has_a_shell_a_password_or_a_group_is_who_shall(stack, root):
    for host in hosts(stack):
        shells = root(host, "awk -F: '$7 !~ /(nologin|false|sync)$/ {print $1}' /etc/passwd").split()
        assert shells == ["root", "admin", *(["deploy"] if host in stack.group("app") else [])], host
        assert root(host, "awk -F: '$2 !~ /^[!*]/ {print $1}' /etc/shadow") == "", host
        # Nobody but root is 0, and no group that gives rights has a member.
        assert root(host, "awk -F: '$3 == 0 {print $1}' /etc/passwd").split() == ["root"]
        members = dict(
            line.split(":")[::3] for line in root(host, "getent group").splitlines() if line.split(":")[3]
        )
        users = (
            ["deploy"] + ["worker"] * (host in stack.group("app")) + ["web"] * (host in stack.group("web"))
        )
        wanted = {"shop": ",".join(users)} if host in stack.group("app") else {}
        assert members == wanted, host
        for group, users in SERVICE_USERS.items():
            for user, groups in users.items() if host in stack.group(group) else ():
                assert sorted(root(host, f"id -Gn {user}").split()) == groups, (host, user)
                assert root(host, f"getent passwd {user}").strip().endswith("/usr/sbin/nologin")
                assert root(host, f"crontab -l -u {user} 2>/dev/null || true") == ""


def test_every_file_that_the_roles_and_the_deploy_lay_down_has_its_mode_and_owner(stack, root):
    rules = [re.compile(pattern) for pattern, _ in MODES]
    wrong = []
    matched = set()
    for host in hosts(stack):
        listed = root(host, f"find {OURS} ! -type l -printf '%m %u %g %y %p\\n' 2>/dev/null || true")
        for line in listed.splitlines():
            mode, owner, group, kind, path = line.split(" ", 4)
            for number, pattern in enumerate(rules):
                if pattern.fullmatch(f"{path}#d" if kind == "d" else path) or (
                    kind == "d" and pattern.fullmatch(path)
                ):
                    modes, wanted_owner, wanted_group = MODES[number][1].split(" ")
                    matched.add(number)
                    if not (
                        mode in modes.split("|")
                        and re.fullmatch(wanted_owner, owner)
                        and re.fullmatch(wanted_group, group)
                    ):
                        wrong.append(f"{host}: {line}, not {MODES[number][1]}")
                    break
            else:
                wrong.append(f"{host}: {line}: nobody knows of it")
    assert wrong == []
    # A rule that matches nothing is one too many; some files are there when jobs or time have made them.
    unused = {MODES[number][0] for number in set(range(len(MODES))) - matched}
    assert unused <= {
        r"/var/backups/bugsink/.+",
        r"/srv/shop/shared/var/.+#d",
        r"/srv/shop/shared/var/.+",
        r"/var/(spool|lib|log)/kestrel/.+",
        r"/etc/kestrel/proven|/etc/kestrel/proven/.*/.*",
        r"/etc/(bugsink|kestrel-web)/former#d",
        r"/etc/(bugsink|kestrel-web)/former/.+",
    }


def test_nothing_is_writable_by_everybody_and_no_set_id_program_is_ours(stack, root):
    for host in hosts(stack):
        # /tmp and its like are sticky; what systemd puts below them is private.
        found = root(
            host,
            "find / -xdev \\( -path /proc -o -path /tmp -o -path /var/tmp \\) -prune -o ! -type l ! -type s"
            " -perm -0002 ! -perm -1000 -print",
        )
        assert found == "", host
        programs = root(host, "find / -xdev -type f -perm /6000 ! -path '/proc/*' -print").split()
        assert programs
        # Each is a Debian package's. (/bin is a link to /usr/bin: dpkg may know either name.)
        either = [*programs, *(path.removeprefix("/usr") for path in programs)]
        said = stack.host(host).run(f"dpkg-query --search {' '.join(either)} 2>/dev/null").stdout
        known = {line.rpartition(": ")[2] for line in said.splitlines()}
        assert [path for path in programs if not known & {path, path.removeprefix("/usr")}] == [], host
        assert root(host, "getcap -r /opt /srv /usr/local 2>/dev/null || true") == "", host


def test_no_program_and_no_configuration_is_writable_by_who_runs_it(stack, root):
    # What each may write: its state, its logs, what the application shares, and folders that are everybody's.
    own = {
        "kestrel": "/var/spool/kestrel /var/lib/kestrel /var/log/kestrel /run/kestrel",
        "worker": "/srv/shop/shared/var",
        "web": "/srv/shop/shared/var",
        "www-data": "/run/kestrel-stack-nginx-shop /var/cache/kestrel-stack-nginx-shop /var/log/nginx",
        "kestrel-web": "/var/lib/kestrel-web",
        "sentry": "/var/lib/bugsink",
    }
    everybodys = (
        "/proc /sys /dev /tmp /var/tmp /run/lock /var/lib/php/sessions /run/systemd /run/dbus /run/user"
    )
    looked = set()
    for host in hosts(stack):
        for group, users in SERVICE_USERS.items():
            for user in users if host in stack.group(group) else ():
                skipped = " -o ".join(f"-path {path}" for path in f"{own[user]} {everybodys}".split())
                found = root(
                    host,
                    f"cd / && sudo -u {user} find / \\( {skipped} \\) -prune -o ! -type l ! -type c ! -type s"
                    " -writable -print 2>/dev/null || true",
                )
                assert found == "", (host, user)
                looked.add(user)
    assert looked == set(own)


def test_a_service_user_may_run_nothing_by_sudo(stack, root):
    for host in hosts(stack):
        for group, users in SERVICE_USERS.items():
            for user in users if host in stack.group(group) else ():
                said = stack.host(host).run(f"sudo -u {user} sudo -n -l")
                assert said.rc != 0, (host, user, said.stdout)


def attempts(group):
    """Return command lines that a stolen deploy key would try, beside those that are allowed."""
    yield "sudo -n -i"
    yield "sudo -n -s id"
    yield "sudo -n -u worker id"
    yield "sudo -n -g shop id"
    yield "sudo -n -u '#0' id"
    yield "sudo -n -u '#-1' id"
    yield "sudo -n sudoedit /etc/passwd"
    yield "sudo -n -e /etc/passwd"
    yield f"sudo -n -u worker {HELPER} status {group}"
    # More, less or other arguments.
    for more in (
        "", "status", "restart", f"status {group} {group}", f"status '{group} {group}'", f"status -- {group}",
        f"-- status {group}", f"status --help {group}", f"--check-syntax status {group}",
        f"status ../{group}", "status 'shop_*'",
        f"status {group}/../{group}", f"status './{group}'", f"status '{group}\n'", f"status '\n{group}'",
        f"status '{group}\nshop_mail'", f"status '{group};id'", "status '$(id)'", f"status '{group}*'",
        "status '*'", "status '[s]hop_mail'", f"status '{group} '", f"status ' {group}'",
        f"status {group.upper()}", f"status {group} ''", "status ''", f"STATUS {group}", f"status={group}",
        "status supervisor", "stop shop_mover", "stop shop_alarm", f"remove {group}",
    ):  # fmt: skip
        yield f"sudo -n {HELPER} {more}"
    # The environment, as options and as what sudo is given.
    for name in (
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONHOME",
        "PATH",
        "BASH_ENV",
        "IFS",
    ):
        yield f"sudo -n {name}=/tmp/kestrel-stack-evil {HELPER} status {group}"
        # (The loader's own never reach sudo, which has a set-id bit.)
        if not name.startswith("LD_"):
            kept = f"/usr/bin/sudo -n --preserve-env={name}"
            yield f"{name}=/tmp/kestrel-stack-evil {kept} {HELPER} status {group}"
    yield f"sudo -n -E {HELPER} status {group}"
    yield f"sudo -n -D /tmp {HELPER} status {group}"
    yield f"sudo -n -R /tmp {HELPER} status {group}"
    # Other programs, also of that name.
    yield f"sudo -n /usr/bin/python3 {HELPER} status {group}"
    yield f"sudo -n /bin/sh {HELPER} status {group}"
    yield f"sudo -n /usr/bin/env {HELPER} status {group}"
    yield f"sudo -n /tmp/kestrel-stack-evil/kestrel-stack-workers status {group}"
    yield f"sudo -n /usr/local/sbin/../sbin/kestrel-stack-kestrel status {group}"
    yield "sudo -n /usr/bin/supervisorctl status"
    yield "sudo -n /usr/bin/systemctl restart supervisor"
    yield "sudo -n /usr/local/sbin/kestrel-stack-bugsink backup"


def web_attempts():
    yield from (
        f"sudo -n {WEB_HELPER} {more}"
        for more in ("", "status", "restart shop", "renew shop", "reload shop shop", "reload ../shop",
                     "reload 'shop\n'", "reload -- shop", "reload 'shop*'", "reload other", "--check-syntax")
    )  # fmt: skip
    yield f"sudo -n PYTHONPATH=/tmp/kestrel-stack-evil {WEB_HELPER} status shop"
    yield "sudo -n /usr/bin/systemctl restart kestrel-stack-web-shop"


@pytest.fixture
def evil(stack):
    """A folder of a deploy user who means harm: modules and a program with the names of real ones."""
    made = []

    def make(host):
        folder = "/tmp/kestrel-stack-evil"
        code = "import pathlib; pathlib.Path('/tmp/kestrel-stack-evil/ran').touch()"
        deploy = stack.host(host, "deploy")
        done = deploy.run(
            f"mkdir -p {folder} && for name in json os re http sitecustomize usercustomize subprocess; do"
            f" echo {shlex.quote(code)} >{folder}/$name.py; done; printf '#!/bin/sh\\ntouch {folder}/ran\\n'"
            f" | tee {folder}/kestrel-stack-workers {folder}/python3 {folder}/readlink >/dev/null"
            f" && chmod +x {folder}/kestrel-stack-workers {folder}/python3 {folder}/readlink"
        )
        assert done.rc == 0, done.stderr
        made.append(host)
        return folder

    yield make
    for host in made:
        stack.host(host, "deploy").run("rm -r /tmp/kestrel-stack-evil")


def refusals(deploy, commands):
    """Run command lines in one go; return those that were not refused, with what they said."""
    commands = list(commands)
    script = "\n".join(
        f"said=$({command} 2>&1 </dev/null); printf '%s\\0%s\\0' $? \"$said\"" for command in commands
    )
    done = deploy.run("sh -c %s", script)
    parts = done.stdout.split("\0")[:-1]
    assert len(parts) == 2 * len(commands)
    return [
        (command, int(code), said)
        for command, code, said in zip(commands, parts[::2], parts[1::2], strict=True)
        if code == "0" or not REFUSED.search(said)
    ]


def test_a_stolen_deploy_key_gets_nothing_from_sudo_but_the_helper(stack, root, evil):
    for host in ("worker1", "web1"):
        folder = evil(host)
        deploy = stack.host(host, "deploy")
        commands = (
            [*attempts("shop_mail")] if host == "worker1" else [*attempts("shop_mail"), *web_attempts()]
        )
        assert refusals(deploy, commands) == []
        # What is allowed is not led astray by the caller's environment or working folder.
        helper = f"{HELPER} status shop_mail" if host == "worker1" else f"{WEB_HELPER} status shop"
        evil_environment = (
            f"PYTHONPATH={folder} PYTHONHOME={folder} PYTHONSTARTUP={folder}/json.py PATH={folder}:$PATH"
            f" LD_PRELOAD={folder}/json.py"
        )
        done = deploy.run(f"cd {folder} && env {evil_environment} /usr/bin/sudo -n {helper}")
        assert done.rc == 0, done.stderr
        assert '"group"' in done.stdout
        assert root(host, f"ls {folder}/ran 2>/dev/null || true") == ""
        # sudo compares arguments as one text; what it lets through as one of them the helper refuses itself.
        action, name = helper.split()[1:]
        joined = deploy.run(f"sudo -n {helper.split()[0]} '{action} {name}'")
        assert joined.rc == 2
        assert "usage: " in joined.stderr
        # What has been listed is the whole of it.
        listed = deploy.run("sudo -n -l").stdout
        allowed = re.findall(r"\(root\) NOPASSWD: (.*)", listed)
        assert allowed
        assert {line.split()[0] for line in allowed} == {helper.split()[0]}
        assert not re.search(r"[*?\[\]!]|ALL\)", "".join(allowed))


def test_what_is_refused_can_be_told_from_what_is_not(stack):
    """So that the list above means something: an allowed line is found by the same means."""
    [(command, code, said)] = refusals(
        stack.host("worker1", "deploy"), [f"sudo -n {HELPER} status shop_mail"]
    )
    assert code == 0
    assert "shop_mail" in command
    assert said.startswith("{")
