"""The project's own exceptions. The command lines print their message without a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, why, and what to do (exit code 2)."""


class RunFailed(RuntimeError):
    """A run cannot go on; the message says why, and what may help (exit code 1)."""
