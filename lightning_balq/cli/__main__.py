"""``python -m lightning_balq.cli``, the same as ``balq``."""

import sys

from lightning_balq.cli.main import main

sys.exit(main())
