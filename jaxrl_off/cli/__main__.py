"""`python -m jaxrl_off.cli`."""

import sys

from jaxrl_off.cli import main

if __name__ == "__main__":
    sys.exit(main())
