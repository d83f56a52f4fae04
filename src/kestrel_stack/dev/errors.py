"""What keeps bin/dev from beginning."""


class DevError(Exception):
    """It cannot begin; the message is one line that says what to do."""
