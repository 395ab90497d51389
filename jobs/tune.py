"""Submit a study: `ray job submit --working-dir . -- python jobs/tune.py --config STUDY [section.field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
