"""Stand-in for Django's users, kept in users.json of the stand-in's state."""

import json
import os
from pathlib import Path

FILE = Path(os.environ["SENTRY_STANDIN_STATE"], "users.json")


def _all():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


class User:
    """A user with an address and a password."""

    def __init__(self, username):
        self.username = username

    def check_password(self, password):
        """Say whether it is this one."""
        return _all()[self.username]["password"] == password

    def set_password(self, password):
        """Note another, until it is saved."""
        self.new = password

    def save(self):
        """Keep it."""
        found = _all()
        found[self.username]["password"] = self.new
        FILE.write_text(json.dumps(found))


class Objects:
    """The users."""

    def filter(self, username):
        """Return those with a name."""
        self.found = [User(username)] if username in _all() else []
        return self

    def first(self):
        """Return the first of them."""
        return self.found[0] if self.found else None

    def get(self, username):
        """Return the one with a name."""
        return self.filter(username).found[0]


User.objects = Objects()


def get_user_model():
    """Return what users are."""
    return User
