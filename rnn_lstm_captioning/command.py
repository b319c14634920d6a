"""What all command lines share: how arguments are read, messages are given and processes end."""

import argparse
import ctypes
import math
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path

import torch

from . import distributed
from .errors import InputError, RunFailed

SCRIPTS = {"rnn": "rnn", "lstm": "lstm", "attn": "lstm_attention"}  # cell -> train_*.py and test_*.py


class ArgumentParser(argparse.ArgumentParser):
    """Reads ``@FILE`` arguments: several on a line, ``#`` starts a comment. Errors are one line."""

    def __init__(self, **keywords):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False, **keywords)

    def convert_arg_line_to_args(self, arg_line):
        return shlex.split(arg_line, comments=True)

    def parse_known_args(self, args=None, namespace=None):
        try:
            return super().parse_known_args(args, namespace)
        except (ValueError, RecursionError) as error:
            self.error(f"an @FILE can't be read: {str(error) or 'it names itself'}")

    def error(self, message):
        leave(2, f"{message}; --help lists the flags")


def run_command(main):
    """Run a command line's main function and leave the process with the exit code of its outcome."""
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture stands in our messages
    reuse_memory()
    torch.set_flush_denormal(True)  # numbers below 1e-38 would slow a CPU down a hundredfold
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no valid text
    try:
        main()
    except InputError as error:  # every process has it
        leave(2, str(error) if distributed.is_first_here() else None)
    except KeyboardInterrupt:
        leave(130, "stopped by a signal" if distributed.is_first_here() else None)
    except RunFailed as error:
        leave(1, str(error) if distributed.is_first_here() else None)
    except OSError as error:
        leave(1, str(error))
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            leave(1, "there is not enough memory; use a smaller --batch-size, --hidden-dim or --image-size")
        if distributed.is_about_others(error):
            what = str(error).split("\n")[0][:150]
            leave(1, f"another process of this run has ended, so this one ends too: --resume goes on ({what})")
        raise


def reuse_memory():
    """Let this process keep the memory that it frees, for its next large tensors.

    By default glibc hands every large block back to the system, which must clear its pages again at
    the next use: on a CPU that can take longer than what is computed in them. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block lives outside the heap ...
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... which doesn't shrink


def leave(code, message):
    """Say one line on standard error, if there is a message, and end the process."""
    if message:
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    if distributed.count() > 1:
        sys.stdout.flush()
        os._exit(code)  # leaving in order would wait for the other processes
    sys.exit(code)


def positive(kind):
    """An argument type: an int or float above 0."""
    return _number(kind, lambda value: value > 0, "above 0")


def non_negative(kind):
    """An argument type: an int or float from 0 on."""
    return _number(kind, lambda value: value >= 0, "0 or more")


def _number(kind, fits, wanted):
    def parse(text):
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        if value >= (2**31 if kind is int else math.inf):
            raise argparse.ArgumentTypeError(f"{text} is too large")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def probability(text):
    """An argument type: a float in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def device(text):
    """An argument type: a device that can be used here."""
    try:
        if torch.empty(0, device=text).is_meta:
            raise RuntimeError("meta tensors hold nothing")
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"device {text} can't be used here") from error
    return text
