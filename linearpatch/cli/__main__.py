# PYTHON_ARGCOMPLETE_OK
"""`python -m linearpatch.cli`."""

import sys

from linearpatch.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
