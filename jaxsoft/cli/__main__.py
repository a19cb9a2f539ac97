"""`python -m jaxsoft.cli` is `jaxsoft`."""

import sys

from jaxsoft.cli.main import main

sys.exit(main())
