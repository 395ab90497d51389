"""Submit the teachers: `ray job submit --working-dir . -- python jobs/teach.py --config FILE [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["teach", *sys.argv[1:]]))
