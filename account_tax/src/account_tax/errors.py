"""The ways a command ends badly; each message says what was found and what to do."""

TO_BE_CONTINUED = 75  # exit status, EX_TEMPFAIL of sysexits.h: the same command goes on later


class Refused(ValueError):
    """The command can't do what it was asked; nothing was changed. Exit status 2."""

    status = 2


class Unmeasured(Refused):
    """It can't, only because something was not measured. Exit status 4."""

    status = 4


class Failed(RuntimeError):
    """The work was begun and did not succeed. Exit status 1, or the one given."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class Preempted(RuntimeError):
    """The place took its machines back in the middle of the work.

    Exit status 75, and the MLflow run is SCHEDULED, if the work is to go on by itself; else 143 and
    KILLED.
    """

    def __init__(self, message: str, *, goes_on: bool):
        super().__init__(message)
        self.status = TO_BE_CONTINUED if goes_on else 143
        self.state = "SCHEDULED" if goes_on else "KILLED"


class RegistrationError(RuntimeError):
    """No version was registered; the message says why and what to do."""
