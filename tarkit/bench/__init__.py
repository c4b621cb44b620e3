"""How fast the models work on this machine, next to its limits and to other programs."""
