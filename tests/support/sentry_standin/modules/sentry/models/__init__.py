"""Stand-in: nothing of Sentry but what kestrel-stack-sentry's scripts ask for."""
