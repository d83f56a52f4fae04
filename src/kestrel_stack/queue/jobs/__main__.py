"""``python -m kestrel_stack.queue.jobs``."""

import sys

from kestrel_stack.queue.jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
