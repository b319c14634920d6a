"""Open the files that a user names: every file that is read goes through here."""

import math
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path, largest: float = math.inf) -> BinaryIO:
    """Open a file that the user named, to read its bytes.

    Args: largest, in bytes: a larger file is none of the expected kind.
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
        if b"\0" in file.read(1 << 16):
            raise ValueError("it is not a text file")
        file.seek(0)
        return file.read().decode("utf-8-sig")
