"""What the stack is for, shown in half a minute: ``bin/demo outage``."""
