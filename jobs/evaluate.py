"""Submit the evaluation: `ray job submit --working-dir . -- python jobs/evaluate.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
