"""Serve: `ray job submit --working-dir . -- python jobs/serve.py --root R --index I --student S [field=value ...]`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
