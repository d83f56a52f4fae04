"""A queue stack for someone who writes jobs, in one terminal: ``bin/dev``."""
