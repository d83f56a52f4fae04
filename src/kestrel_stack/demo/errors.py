"""What ends a demo before its time."""


class DemoError(Exception):
    """The demo cannot begin or go on; the message is one line."""
