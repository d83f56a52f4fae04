"""Where a secret must not be on a host, and programs that look for it there and say nothing themselves."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping

PLACES = {
    # Each prints what is in one kind of place. The journal's export has every process's command line as well.
    "the journal": "journalctl --no-pager --output export --all",
    "log files": "find /var/log -type f ! -path '*/journal/*' -exec cat {} +",
    "process lists": "sudo -u nobody sh -c 'cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null'",
    "releases": "find /srv -path '*/shared/*' -prune -o -path '*/venvs/*' -prune -o -type f -exec cat {} +",
    # What a user can read that is in no group. Not /usr but /usr/local: Debian's own packages know no secret.
    "files for everybody": (
        "cd / && sudo -u nobody find /etc /home /opt /root /run /srv /tmp /usr/local /var -type f -readable"
        " ! -path '/opt/*/site-packages/*' ! -path '/var/lib/dpkg/*' -print0 2>/dev/null | xargs -0 -r cat"
    ),
    "other programs' environment": (
        "for user in $(awk -F: '$3 >= 100 && $3 < 65000 {print $1}' /etc/passwd);"
        # Who may read the application's settings may have them in the environment as well.
        " do case $user in worker|web|deploy) ;;"
        " *) sudo -u $user sh -c 'cat /proc/[0-9]*/environ 2>/dev/null';; esac; done"
    ),
}
SETTINGS = "find /etc -type f -exec cat {} +"
"""Where secrets belong: what is not found here has not come to the host."""
_LIST = "/root/.searched-for"
KEEP = f"umask 077; cat >{_LIST}"
"""Takes what to look for from its standard input: an argument would itself be in process lists and logs."""
FORGET = f"rm -f {_LIST}"


def script(command: str) -> str:
    """Return a shell's line, for root, that prints which of the kept texts are in a command's output."""
    return f"{{ {command}; }} | LC_ALL=C grep -aoF -f {_LIST} | sort -u; true"


def forms(text: str) -> list[str]:
    """Return a text and what is the same of it in base64 wherever it begins, as Ansible prints read files."""
    found = [text]
    for before in range(3):
        whole = b64encode(b"\0" * before + text.encode()).decode()
        # What the bytes beside it change: the first characters, and the last ones.
        found.append(whole[(0, 2, 3)[before] : len(whole) - (0, 4, 4)[(before + len(text)) % 3]])
    return found


def named(texts: Mapping[str, str], seen: str | Iterable[str]) -> list[str]:
    """Return the names of the texts that are seen in any form: in a long text, or among a search's lines."""
    return sorted(name for name, text in texts.items() if any(form in seen for form in forms(text)))
