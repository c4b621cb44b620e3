"""The error that a user can correct: what happened, where, and the next command."""


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it without a traceback.

    `str()` is the message and, on the next line, the hint: the command to type next.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint
