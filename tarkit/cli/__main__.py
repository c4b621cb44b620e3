"""`python -m tarkit.cli`, for an environment whose console script is not on the path."""

from tarkit.cli.app import main

main()
