"""`python -m entrl`, the form `accelerate launch -m entrl` needs."""

import sys

from entrl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
