"""Flags of the stack's programs: what is wrong with them is one line, and the caller says how it ends."""

from __future__ import annotations

import argparse
from typing import NoReturn


class UsageError(Exception):
    """A wrong flag; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        raise UsageError(f"{message}; see --help")
