"""`python -m tritoncrf` is the command `tritoncrf`."""

import sys

from tritoncrf.cli import main

sys.exit(main())
