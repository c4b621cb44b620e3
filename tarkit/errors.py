"""The error that a user can correct: what happened, where, and the next command."""

import errno
import os


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it without a traceback.

    `str()` is the message and, on the next line, the hint: the command to type next.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


SAME_COMMAND = "then the same command goes on from here"
HINTS = {
    errno.ENOSPC: f"free some space on this disk; {SAME_COMMAND}",
    errno.EDQUOT: f"free some space within your quota; {SAME_COMMAND}",
    errno.EEXIST: "it is a file where a folder is needed: name another path",
    errno.ENOTDIR: "it is below a file, not below a folder: name another path",
    errno.EISDIR: "it is a folder where a file is needed: name another path",
    errno.EROFS: "name another --out: this disk cannot be written to",
    errno.EACCES: f"change its permissions, or name another path; {SAME_COMMAND}",
    errno.EPERM: f"change its permissions, or name another path; {SAME_COMMAND}",
    errno.EFBIG: f"ulimit -f unlimited, or a smaller shard_size; {SAME_COMMAND}",
    errno.EMFILE: f"ulimit -n 65536; {SAME_COMMAND}",
    errno.ENOMEM: f"use a smaller batch_size, or close other programs; {SAME_COMMAND}",
}
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
NO_SPACE = ("No space left on device", "os error 28")


def explained(error: Exception) -> UserError | None:
    """The UserError of an error that the machine causes, such as a full disk; None of another.

    Libraries that write files in C or Rust raise errors of their own for a full disk.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, BrokenPipeError):  # the reader of stdout has ended
        return None
    if isinstance(error, OSError):
        places = [os.fspath(name) for name in (error.filename, error.filename2) if name]
        place = " -> ".join(map(_text, places))
        why = error.strerror or str(error)
        return UserError(f"{place}: {why}" if place else why, hint=HINTS.get(error.errno or 0, ""))
    names = (type(error).__name__, str(error))
    if isinstance(error, MemoryError) or names[0] == "OutOfMemoryError" or NO_MEMORY in names[1]:
        reason = str(error).splitlines()[0] if str(error) else "no more can be had"
        return UserError(f"not enough memory: {reason}", hint=HINTS[errno.ENOMEM])
    if any(text in str(error) for text in NO_SPACE):
        return UserError(str(error).splitlines()[0], hint=HINTS[errno.ENOSPC])
    return None


def _text(place: object) -> str:
    return place.decode(errors="backslashreplace") if isinstance(place, bytes) else str(place)
