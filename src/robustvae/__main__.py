"""`python -m robustvae` is the command line."""

import sys

from robustvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
