"""What is kept: history, the audit log and small things, in one SQLite file."""
