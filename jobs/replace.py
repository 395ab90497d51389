"""Submit a replacement: `ray job submit --working-dir . -- python jobs/replace.py --config FILE --passages FILE`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["replace", *sys.argv[1:]]))
