"""Stand-in for Sentry's tokens, kept in tokens.json of the stand-in's state."""

import json
import os
import secrets
from pathlib import Path

FILE = Path(os.environ["SENTRY_STANDIN_STATE"], "tokens.json")


class ApiToken:
    """A token, whose text is there when it is made and not again."""

    def __init__(self, text):
        self.plaintext_token = text


class Objects:
    """The tokens."""

    def create(self, *, user, name, token_type, scope_list, expires_at):
        """Make one."""
        assert user.username and name and scope_list and expires_at is None
        text = token_type + secrets.token_hex(32)
        there = json.loads(FILE.read_text()) if FILE.exists() else []
        FILE.write_text(json.dumps([*there, text]))
        return ApiToken(text)


ApiToken.objects = Objects()
