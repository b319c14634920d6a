"""The one exception of the project's own."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, why, and what to do.

    The command lines print the message without a traceback and leave with exit code 2.
    """
