"""One page about runs, and the facts of any folder, from the numbers that commands wrote."""
