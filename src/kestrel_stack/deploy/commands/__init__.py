"""The commands themselves, as `fabfile.py` calls them. Each returns an exit code or raises DeployError."""

from .deploy import Ask, deploy
from .look import releases, status, unlock
from .rollback import rollback

__all__ = ["Ask", "deploy", "releases", "rollback", "status", "unlock"]
