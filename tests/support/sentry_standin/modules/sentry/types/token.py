"""Stand-in for the kinds of tokens."""


class AuthTokenType:
    """Of a user."""

    USER = "sntryu_"
