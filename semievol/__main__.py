"""`python -m semievol` is the command `semievol`."""

import sys

from semievol.cli import main

sys.exit(main())
