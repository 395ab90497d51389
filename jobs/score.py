"""Submit mining and scoring: `ray job submit --working-dir . -- python jobs/score.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
