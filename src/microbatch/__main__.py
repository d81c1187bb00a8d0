"""``python -m microbatch``: the same as the command ``microbatch``."""

import sys

from microbatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
