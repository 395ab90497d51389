"""Submit a compaction: `ray job submit --working-dir . -- python jobs/compact.py --config FILE`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["compact", *sys.argv[1:]]))
