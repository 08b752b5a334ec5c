"""`python -m sinelr_lightning` is `sinelr`."""

import sys

from sinelr_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
