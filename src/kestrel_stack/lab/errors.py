"""What the lab says when it cannot go on."""


class LabError(Exception):
    """Something named in one line that the user can act on; the command line prints it and exits 1."""
