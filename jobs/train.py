"""Distil the student: `ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/NAME.yaml [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
