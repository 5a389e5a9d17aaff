"""`python -m gpo` is `gpo`."""

import sys

from gpo.cli import main

sys.exit(main())
