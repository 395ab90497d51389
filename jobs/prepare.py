"""Submit a preparation: `ray job submit --working-dir . -- python jobs/prepare.py --dataset NAME --from URI --to URI`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
