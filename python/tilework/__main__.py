"""``python -m tilework``."""

import sys

from tilework.cli import main

sys.exit(main())
