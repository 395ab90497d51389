"""Rewrite every turn with every teacher: `ray job submit --working-dir . -- python jobs/teach.py --config jobs/configs/NAME.yaml [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["teach", *sys.argv[1:]]))
