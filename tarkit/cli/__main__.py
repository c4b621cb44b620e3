"""`python -m tarkit.cli`, where the console script is not on the path."""

from tarkit.cli.app import main

main()
