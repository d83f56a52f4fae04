"""Entry point of ``python -m kestrel_stack.demo``, which is what ``bin/demo`` runs."""

import sys

from kestrel_stack.demo.cli import main

sys.exit(main())
