"""What all command lines share: how messages are printed and how processes end. It needs no torch."""

import atexit
import contextlib
import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from ..errors import InputError, RunFailed
from ..text import printable

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


def run_command(main: Callable[[], object], keep_memory: bool = True) -> None:
    """Run the main function of a command line, and end the process with its exit code. Args: keep_memory, see
    :func:`reuse_memory`."""
    import torch  # takes seconds

    from ..training import distributed

    warnings.filterwarnings("ignore", module="PIL")  # our own messages say what is wrong with an image
    warnings.showwarning = lambda message, *_, **__: warn(f"warning: {message}")
    if keep_memory:
        reuse_memory()
    torch.set_flush_denormal(True)  # numbers below 1e-38 would make a CPU a hundred times slower
    try:
        main()
    except InputError as error:
        leave(2, error)
    except KeyboardInterrupt:
        leave(130, "stopped by a signal" if _rank() == 0 else None)
    except RunFailed as error:
        leave(1, error)
    except BrokenPipeError:  # as after `| head`
        leave(1, None)
    except OSError as error:
        leave(1, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        if out_of_memory or "can't allocate memory" in str(error):
            leave(1, "there is not enough memory; use a smaller --batch-size, --hidden-dim or --image-size")
        if isinstance(error, RuntimeError) and distributed.is_connection_error(error):
            what = str(error).split("\n")[0][:150]
            leave(1, f"another process of this run has ended, so this one ends too: --resume continues ({what})")
        raise


def prepare_output() -> None:
    """Text that the terminal can't show is printed as escapes; a reader that closed our output is no error."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stderr, _BestEffort):
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text

    def flush() -> None:  # Python would print a traceback when it flushes the output itself
        try:
            sys.stdout.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                warn(f"{Path(sys.argv[0]).name}: the output could not be written: {error.strerror}")
            os._exit(1)

    atexit.register(flush)
    sys.stderr = _BestEffort(sys.stderr)
    os.environ["MPLBACKEND"] = "agg"  # figures are written, never shown


class _BestEffort:
    """Standard error: a message or a progress bar that can't be written does not end the program."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with contextlib.suppress(OSError):
            return self.stream.write(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def reuse_memory() -> None:
    """Let this process keep the memory that it frees, for its next large tensors.

    By default glibc returns every large block to the system, which must clear its pages again at
    the next use: on a CPU that can take longer than the computation itself. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is outside the heap ...
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... and the heap does not shrink


def show(text: str, file: TextIO) -> None:
    """Print a text of our own, such as the help, with all its lines."""
    try:
        print(text, end="", file=file, flush=True)
    except OSError as error:
        leave(1, None if isinstance(error, BrokenPipeError) else f"the output could not be written: {error.strerror}")


def say(text: object) -> None:
    """Print one line, in rank 0 only. Everything that is printed goes through here or :func:`warn`."""
    if _rank() == 0:
        print(printable(text), flush=True)


def _distributed():
    """The module for several processes, if this command uses it."""
    return sys.modules.get("rnn_lstm_captioning.training.distributed")


def _rank():
    """The number of this process among those that train together, once they are connected."""
    distributed = _distributed()
    return distributed.rank() if distributed else 0


def warn(text: object) -> None:
    """Print one line on standard error."""
    with contextlib.suppress(OSError):  # nobody reads it
        print(printable(text), file=sys.stderr, flush=True)


def leave(code: int, message: object) -> NoReturn:
    """Print one line on standard error, if there is a message, and end the process. An error that all processes have
    is printed by rank 0 alone."""
    if message and not (_rank() > 0 and getattr(message, "in_all_processes", False)):
        warn(f"{Path(sys.argv[0]).name}: {str(message)[:2000]}")
    distributed = _distributed()
    if distributed and distributed.world_size() > 1:
        sys.stdout.flush()
        os._exit(code)  # a regular exit would wait for the other processes
    sys.exit(code)
