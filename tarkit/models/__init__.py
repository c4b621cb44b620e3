"""The networks, in pure torch: no files, no command line, no globals."""
