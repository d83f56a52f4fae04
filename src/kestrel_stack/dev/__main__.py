"""Entry point of ``python -m kestrel_stack.dev``, which is what ``bin/dev`` runs."""

import sys

from kestrel_stack.dev.cli import main

sys.exit(main())
