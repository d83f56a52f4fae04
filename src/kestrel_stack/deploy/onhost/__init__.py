"""Programs that the deploy sends to a host and runs there: standard library only, Debian 12's Python."""
