"""`python -m tritoncrf` is the same as the command `tritoncrf`."""

import sys

from tritoncrf.cli import main

sys.exit(main())
