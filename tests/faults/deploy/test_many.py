"""Many hosts behind one sshd, which drops connections when too many of them have not logged in yet."""

import ipaddress
import re
from pathlib import Path

import pytest
import yaml

from support.deploy import GitApp

pytestmark = [pytest.mark.docker, pytest.mark.long]

COUNT = 24
# One sshd for all of them, with one limit: by the address that was called it shows each deploy another folder
# as /srv/shop. The venv is common to all: what counts here are connections, not 24 builds on one machine.
AS_HOST = """#!/bin/sh
set -- $SSH_CONNECTION
exec sudo -n /usr/local/sbin/as-host-root "$3" "$SSH_ORIGINAL_COMMAND"
"""
AS_HOST_ROOT = """#!/bin/sh
export ADDRESS="$1" COMMAND="$2"
exec unshare --mount sh -c '
    mount --bind "/srv/hosts/$ADDRESS" /srv/shop && mount --bind /srv/hosts/venvs /srv/shop/venvs || exit
    exec setsid --wait runuser -u deploy -- /bin/sh -c "$COMMAND"'
"""
SSHD = """
# Of connections that have not logged in, the eleventh is dropped.
MaxStartups 10:100:10
Match LocalAddress {network} User deploy
    ForceCommand /usr/local/sbin/as-host
"""
SET_UP = """set -eu
printf '%s' '{as_host}' >/usr/local/sbin/as-host
printf '%s' '{as_host_root}' >/usr/local/sbin/as-host-root
chmod 755 /usr/local/sbin/as-host /usr/local/sbin/as-host-root
echo 'deploy ALL=(root) NOPASSWD: /usr/local/sbin/as-host-root' >/etc/sudoers.d/as-host
new() {{ install -d -o deploy -g shop -m 2755 "$@"; }}
new /srv/hosts /srv/hosts/venvs
for address in {addresses}; do
    ip address add "$address/24" dev eth0 2>/dev/null || :
    new "/srv/hosts/$address" "/srv/hosts/$address/releases" "/srv/hosts/$address/venvs" \
        "/srv/hosts/$address/shared" "/srv/hosts/$address/shared/var"
done
printf '%s' '{sshd}' >/etc/ssh/sshd_config.d/90-many.conf
sshd -t
systemctl reload ssh
"""
TEAR_DOWN = """
rm -rf /etc/ssh/sshd_config.d/90-many.conf /etc/sudoers.d/as-host /usr/local/sbin/as-host* /srv/hosts
systemctl reload ssh
for address in {addresses}; do ip address del "$address/24" dev eth0; done
"""


def quoted(text):
    return text.replace("'", "'\"'\"'")


@pytest.fixture
def many(made_lab, tmp_path):
    """An inventory of COUNT hosts that are one machine; and their addresses."""
    lab = made_lab
    network = ipaddress.ip_network(lab.addresses["worker3"] + "/24", strict=False)
    addresses = [str(network[100 + number]) for number in range(1, COUNT + 1)]
    names = {"addresses": " ".join(addresses)}
    sshd = SSHD.format(network=f"{network[96]}/27")
    lab.inside(
        "worker3",
        SET_UP.format(as_host=quoted(AS_HOST), as_host_root=quoted(AS_HOST_ROOT), sshd=quoted(sshd), **names),
    )
    config = lab.ssh_config.read_text()
    known = Path(re.search(r"UserKnownHostsFile (.*)", config).group(1)).read_text()
    keys = re.findall(r"^worker3,\S+ (.*)$", known, re.MULTILINE)
    (tmp_path / "known_hosts").write_text("".join(f"{a} {key}\n" for a in addresses for key in keys))
    (tmp_path / "ssh_config").write_text(
        re.sub(r"UserKnownHostsFile .*", f"UserKnownHostsFile {tmp_path / 'known_hosts'}", config)
    )
    hosts = {
        f"many{number:02}": {"ansible_host": address, "kestrel_stack_address": address}
        for number, address in enumerate(addresses, 1)
    }
    shared = yaml.safe_load((lab.whole / "group_vars/all.yml").read_text())
    variables = {**shared, "deploy_ssh_config": str(tmp_path / "ssh_config"), "ansible_user": "admin"}
    env = tmp_path / "many"
    env.mkdir()
    (env / "hosts.yml").write_text(
        yaml.safe_dump({"all": {"children": {"app": {"hosts": hosts}}, "vars": variables}})
    )
    yield env, addresses
    lab.inside("worker3", TEAR_DOWN.format(**names), check=False)


def test_two_dozen_hosts_at_once(lab, many, first, tmp_path):
    """24 hosts at once against sshd's MaxStartups"""
    env, addresses = many
    app = GitApp(tmp_path / "application")
    assert lab.deploy(app, "--limit=many01", env=env).code == 0
    done = lab.deploy(app, "--force", "--batch=100%", "--canary=0", env=env)
    assert done.code == 0, done.text
    found = {lab.inside("worker3", f"readlink /srv/hosts/{address}/current") for address in addresses}
    assert len(found) == 1, found
    lab.place = f"all {COUNT} new"
    assert f"on {COUNT} hosts" in done.text
    left = lab.inside("worker3", "find /srv/hosts -maxdepth 3 -name .deploy.lock -o -name '.*.partial'")
    assert left == ""
