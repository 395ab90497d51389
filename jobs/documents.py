"""Submit the document encoder's training: `ray job submit --working-dir . -- python jobs/documents.py --config FILE ...`."""

import sys

from raydistill.cli import main

if __name__ == "__main__":
    sys.exit(main(["documents", *sys.argv[1:]]))
