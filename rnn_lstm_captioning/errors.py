"""The project's own exceptions. The command lines print their messages without a traceback."""


class InputError(ValueError):
    """The user's input can't be used. The message says what is wrong, why, and what to do (exit code 2)."""

    in_all_processes = False  # several processes train together, and all of them raise this error


class RunFailed(RuntimeError):
    """A run can't continue. The message says why, and what may help (exit code 1)."""
