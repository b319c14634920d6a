"""The project's own exceptions. The command lines print their message without a traceback."""


class InputError(ValueError):
    """Something that the user gave can't be used; the message says what, why, and what to do (exit code 2)."""


class RunFailed(RuntimeError):
    """A run can't continue; the message says why, and what may help (exit code 1)."""
