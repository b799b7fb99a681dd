"""``python -m tilework.bench``."""

import sys

from tilework.bench.commands import main

sys.exit(main())
