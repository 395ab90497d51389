"""Submit the writing of conversations: `ray job submit --working-dir . -- python jobs/synthesize.py --config FILE`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["synthesize", *sys.argv[1:]]))
