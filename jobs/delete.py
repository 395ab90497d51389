"""Submit a deletion of passages: `ray job submit --working-dir . -- python jobs/delete.py --config FILE --ids FILE`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["delete", *sys.argv[1:]]))
