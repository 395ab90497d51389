"""Measure student, teachers and baselines: `ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/configs/NAME.yaml [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
