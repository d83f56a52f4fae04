"""Stand-in: nothing of Django but what kestrel-stack-sentry's scripts ask for."""
