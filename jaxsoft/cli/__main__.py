"""`python -m jaxsoft.cli` is `jaxsoft`."""

import sys

from jaxsoft.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
