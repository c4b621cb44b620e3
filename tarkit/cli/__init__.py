"""The command line: signatures, help, exit codes. The module of a verb does the work."""

from tarkit.cli.app import main as main
