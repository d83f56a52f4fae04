"""``python -m kestrel_stack.consumer``."""

import sys

from kestrel_stack.consumer.cli import main

if __name__ == "__main__":
    sys.exit(main())
