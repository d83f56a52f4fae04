"""The commands themselves, as `fabfile.py` calls them. Each returns an exit code or raises DeployError."""

from .check import check
from .deploy import Ask, AskPace, deploy
from .logs import AskLogs, logs
from .look import releases, status, unlock
from .rollback import AskRollback, rollback
from .workers import AskWorkers, workers

__all__ = [
    "Ask",
    "AskLogs",
    "AskPace",
    "AskRollback",
    "AskWorkers",
    "check",
    "deploy",
    "logs",
    "releases",
    "rollback",
    "status",
    "unlock",
    "workers",
]
