"""Submit the whole chain: `ray job submit --working-dir . -- python jobs/distill.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
