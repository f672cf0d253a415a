"""`python -m patchlake`: the command line."""

from patchlake.jobs.__main__ import main

main()
