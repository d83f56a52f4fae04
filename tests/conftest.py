"""Fixtures that several folders share; one per session, whoever asks first."""

from support.deploy_lab import made_lab  # noqa: F401
