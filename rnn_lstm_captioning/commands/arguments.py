"""How a command line is read: @FILE, errors in one line, and types for arguments. It needs no torch."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..files import read_text
from .common import leave, show


class ArgumentParser(argparse.ArgumentParser):
    """Reads arguments from ``@FILE``: a line can have several, and ``#`` starts a comment. An error is one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple:  # type: ignore[override]
        self.files_read = 0
        return super().parse_known_args(self._with_files(sys.argv[1:] if args is None else args), namespace)

    def _with_files(self, args):
        """The arguments, with those in the files that @FILE names in its place."""
        found = []
        for arg in args:
            if not arg.startswith("@"):
                found.append(arg)
                continue
            self.files_read += 1
            if self.files_read > 100:
                self.error("an @FILE can't be read: it names itself, or too many others")
            try:
                lines = read_text(arg[1:], largest=1e6).splitlines()
                words = [word for line in lines for word in shlex.split(line, comments=True)]
            except FileNotFoundError:
                self.error(f"there is no file {arg[1:]} to read arguments from")
            except (OSError, ValueError) as error:
                self.error(f"{arg} can't be read: {error}")
            found += self._with_files(words)
        return found

    def _print_message(self, message, file=None):  # argparse's own hides that the help could not be written
        show(message, file or sys.stderr)

    def error(self, message: str) -> NoReturn:
        leave(2, f"{message}; --help lists the flags")


def positive(kind: type) -> Callable[[str], Any]:
    """An argument type: an int or float above 0."""
    return _number(kind, lambda value: value > 0, "above 0")


def non_negative(kind: type) -> Callable[[str], Any]:
    """An argument type: an int or float, 0 or more."""
    return _number(kind, lambda value: value >= 0, "0 or more")


def _number(kind, fits, wanted):
    def parse(text):
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        if value >= (2**31 if kind is int else math.inf):
            raise argparse.ArgumentTypeError(f"{text} is too large")
        return value

    parse.__name__ = kind.__name__  # argparse writes it in its message
    return parse


def finite(text: str) -> float:
    """An argument type: a number, neither infinite nor nan."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def probability(text: str) -> float:
    """An argument type: a float in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def name(text: str) -> str:
    """An argument type: the name of a file, a folder or a pattern."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: is a variable of the shell not set?")
    return text


def path(text: str) -> Path:
    """An argument type: the path of a file or folder."""
    return Path(name(text))


def device(text: str) -> str:
    """An argument type: a device that can be used on this machine."""
    import torch  # takes seconds: --help does not need it

    try:
        if torch.empty(0, device=text).is_meta:
            raise RuntimeError("meta tensors hold no values")
    except (RuntimeError, AssertionError, ModuleNotFoundError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"device {text} can't be used here") from error
    return text


def port_number(text: str) -> int:
    """An argument type: a port."""
    if not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, which is a number from 1 to 65535")
    return int(text)
