"""``python -m kestrel_stack.web`` is ``kestrel-web``."""

from __future__ import annotations

import sys

from kestrel_stack.web.cli import main

if __name__ == "__main__":
    sys.exit(main())
