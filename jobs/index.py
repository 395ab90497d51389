"""Submit the index: `ray job submit --working-dir . -- python jobs/index.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
