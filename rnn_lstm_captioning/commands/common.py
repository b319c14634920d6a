"""What all command lines share: how arguments are read, how messages are printed and how processes end."""

import argparse
import ctypes
import math
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..errors import InputError, RunFailed
from ..training import distributed

# cells with scripts of their own, train_*.py and test_*.py; every cell has the commands train and test
SCRIPTS = {"rnn": "rnn", "lstm": "lstm", "attn": "lstm_attention"}


def script_for(command: str, cell: str, own: Path | None = None) -> str:
    """How to train or test a cell from the current folder: ``python train_lstm.py`` if the script is there, else
    ``python -m rnn_lstm_captioning train --cell lstm``. Args: own, a file with a learner's functions."""
    script = f"{command}_{SCRIPTS.get(cell)}.py"
    if Path(script).exists():
        return f"python {script}" + (f" --cell {own}" if own else "")
    choice = f" --cell {f'{own}:{cell}' if own else cell}" if command == "train" else ""
    return f"python -m rnn_lstm_captioning {command}{choice}"


class ArgumentParser(argparse.ArgumentParser):
    """Reads arguments from ``@FILE``: a line can have several, and ``#`` starts a comment. An error is one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False, **keywords)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple:  # type: ignore[override]
        try:
            return super().parse_known_args(args, namespace)
        except (ValueError, RecursionError) as error:
            self.error(f"an @FILE can't be read: {str(error) or 'it names itself'}")

    def error(self, message: str) -> NoReturn:
        leave(2, f"{message}; --help lists the flags")


def run_command(main: Callable[[], object]) -> None:
    """Run the main function of a command line, and end the process with its exit code."""
    warnings.filterwarnings("ignore", module="PIL")  # our own messages say what is wrong with an image
    reuse_memory()
    torch.set_flush_denormal(True)  # numbers below 1e-38 would make a CPU a hundred times slower
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        main()
    except InputError as error:  # raised in every process
        leave(2, str(error) if distributed.is_local_rank_0() else None)
    except KeyboardInterrupt:
        leave(130, "stopped by a signal" if distributed.is_local_rank_0() else None)
    except RunFailed as error:
        leave(1, str(error) if distributed.is_local_rank_0() else None)
    except BrokenPipeError:  # as after `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, nothing more can be printed
        leave(1, None)
    except OSError as error:
        leave(1, str(error))
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            leave(1, "there is not enough memory; use a smaller --batch-size, --hidden-dim or --image-size")
        if distributed.is_connection_error(error):
            what = str(error).split("\n")[0][:150]
            leave(1, f"another process of this run has ended, so this one ends too: --resume continues ({what})")
        raise


def reuse_memory() -> None:
    """Let this process keep the memory that it frees, for its next large tensors.

    By default glibc returns every large block to the system, which must clear its pages again at
    the next use: on a CPU that can take longer than the computation itself. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is outside the heap ...
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... and the heap does not shrink


def say(*words: object) -> None:
    """Print in rank 0 only."""
    if distributed.rank() == 0:
        print(*words, flush=True)


def leave(code: int, message: str | None) -> NoReturn:
    """Print one line on standard error, if there is a message, and end the process."""
    if message:
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    if distributed.world_size() > 1:
        sys.stdout.flush()
        os._exit(code)  # a regular exit would wait for the other processes
    sys.exit(code)


# -------------------------------------------------------------------------------- argument types


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


def device(text: str) -> str:
    """An argument type: a device that can be used on this machine."""
    try:
        if torch.empty(0, device=text).is_meta:
            raise RuntimeError("meta tensors hold no values")
    except (RuntimeError, AssertionError, ModuleNotFoundError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"device {text} can't be used here") from error
    return text
