"""Open the files that a user names: every file that is read goes through here."""

import contextlib
import contextvars
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


def open_file(path: str | Path, largest: float = math.inf) -> BinaryIO:
    """Open a file that the user named, to read its bytes.

    Args: largest, in bytes: a larger file is refused.
    Raises: OSError, such as FileNotFoundError; ValueError for a folder, a pipe or a device, which could keep us waiting
        for ever, and for a file that is too large.
    """
    kind = os.stat(path)  # before it is opened: opening a pipe waits for a writer
    if stat.S_ISDIR(kind.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(kind.st_mode):
        raise ValueError("it is a pipe or a device, not a file")
    if kind.st_size > largest:
        raise ValueError(f"it has {kind.st_size / 1e6:,.0f} MB; at most {largest / 1e6:,.0f} MB are read")
    return open(path, "rb")


def read_text(path: str | Path, largest: float = 2e9) -> str:
    """The text (UTF-8) in a file that the user named. Raises: OSError; ValueError that says why it can't be used."""
    with open_file(path, largest) as file:
        if b"\0" in file.read(1 << 16):  # most files that are no text show it here, before gigabytes are read
            raise ValueError("it is not a text file")
        file.seek(0)
        text = file.read().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it is not a text file")
    return text


def same_file(a: str | Path, b: str | Path) -> bool:
    """Whether two paths name the same file, whatever links and spellings lead to it."""
    return os.path.realpath(a) == os.path.realpath(b)


_protected: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("protected", default=frozenset())


@contextlib.contextmanager
def protecting(paths: Iterable[str | Path | None]) -> Iterator[None]:
    """Inside the block, no result can be written over these files: a command names the files that it reads."""
    named = frozenset(os.path.realpath(path) for path in paths if path)
    token = _protected.set(_protected.get() | named)
    try:
        yield
    finally:
        _protected.reset(token)


def check_unprotected(path: str | Path) -> None:
    """Raise InputError if a result at this path would overwrite a file that the command reads."""
    if os.path.realpath(path) in _protected.get():
        raise InputError(f"{path} would be overwritten, but the command reads it: choose another place for the results")
