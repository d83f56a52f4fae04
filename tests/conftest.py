"""Options and fixtures that several folders share."""

import signal
import sys

from hypothesis import HealthCheck, settings

from support.deploy_lab import made_lab  # noqa: F401

# How long an example takes is not what is tested: a busy machine must not fail for it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser):
    """Let the contract be played against any server; see tests/contract/kestrel/README.md."""
    group = parser.getgroup("kestrel", "the contract of the broker (tests/contract/kestrel)")
    group.addoption(
        "--broker", metavar="embedded|HOST:PORT", help="which broker the contract is played against"
    )
    group.addoption(
        "--admin", metavar="PORT|HOST:PORT", help="its admin HTTP; without it those cases are skipped"
    )
    group.addoption(
        "--kestrel-config",
        choices=["shared", "strict"],
        default="shared",
        help="with which of the printed configurations that server was started",
    )
    group.addoption(
        "--print-kestrel-config",
        choices=["shared", "strict"],
        nargs="?",
        const="shared",
        help="print the configuration (Scala) that a real Kestrel needs for the contract, and stop",
    )


def pytest_configure():
    """Let what the tests start hear Ctrl-C: a program in a shell's background inherits it as ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_cmdline_main(config):
    """Print a configuration instead of running tests, if asked to."""
    server = config.getoption("--print-kestrel-config")
    if server is None:
        return None
    from support.contract import kestrel_config, load_cases

    sys.stdout.write(kestrel_config(load_cases(), server))
    return 0
