"""``python -m tests.chaos``; what it does is told in :mod:`tests.chaos.matrix`, which its processes can import."""

import sys

from tests.chaos.matrix import main

if __name__ == "__main__":
    sys.exit(main())
