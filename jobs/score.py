"""Mine candidates and score them by every teacher: `ray job submit --working-dir . -- python jobs/score.py --config jobs/configs/NAME.yaml [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
