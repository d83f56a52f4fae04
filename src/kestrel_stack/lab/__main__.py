"""Entry point of ``python -m kestrel_stack.lab``."""

import sys

from kestrel_stack.lab.cli import main

sys.exit(main())
