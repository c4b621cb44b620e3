"""The command line: signatures, help, exit codes. What a command does stands in its verb."""

from tarkit.cli.app import main as main
