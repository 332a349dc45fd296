"""The two ways a command ends badly; each message says what was found and what to do."""


class Refused(ValueError):
    """The command can't do what it was asked; nothing was changed. Exit status 2."""


class Failed(RuntimeError):
    """The work was begun and did not succeed. Exit status 1, or the one given."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status
