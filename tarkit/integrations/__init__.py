"""Tar as a part of other programs, which find it by an entry point."""
