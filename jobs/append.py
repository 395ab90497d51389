"""Submit an append of passages: `ray job submit --working-dir . -- python jobs/append.py --config FILE --passages FILE`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["append", *sys.argv[1:]]))
