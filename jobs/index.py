"""Encode the corpus into a sparse index: `ray job submit --working-dir . -- python jobs/index.py --config jobs/configs/NAME.yaml [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
