"""Submit the training: `ray job submit --working-dir . -- python jobs/train.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
