"""Check a learner's own functions. The checker calls every function in a file that has a known name, in numpy or torch,
and compares its results with the right values and gradients. It names one known mistake, or two. The learner's code
runs in its own process, with a time limit.
"""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch

from ..cells import CELLS
from ..errors import InputError
from .comparing import SIZES, Mistake, Unusable, check_autograd, check_backward, check_forward, check_large_scores
from .plain_cells import ORDER


def check_file(
    file: Path, timeout: float, only: Sequence[str] = (), through_autograd: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Check the functions of a file in another process.

    Args: file; timeout, in seconds: then the running function is stopped, and the next ones get the same time again;
        only, check these functions and no others; through_autograd, a forward whose gradients autograd must find.
    Yields: function, outcome ("right", "wrong", "unchecked", "todo") and a message, in the order of the checks.
    Raises: InputError if the file can't be used.
    """
    command = [sys.executable, "-m", "rnn_lstm_captioning.classroom.checking", str(file.resolve())]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        shown, begun, ended = 0, "the import", 0
        while begun:  # once, and again after each function that did not return
            try:
                arguments = [str(report), through_autograd, *only]
                ended = subprocess.run([*command, *arguments], timeout=timeout, env=environment).returncode
                why = f"it ended the whole process (exit code {ended})"
            except subprocess.TimeoutExpired:
                why = f"it did not finish within {timeout:g} seconds: is there an endless loop?"
            lines = _read_report(report)
            if not lines:  # the checker itself could not start
                raise InputError(f"{file} can't be checked: the checker's process ended (exit code {ended})")
            begun = lines[-1][0] if lines[-1][1] == "begun" else ""
            if begun == "the import":
                raise InputError(f"{file} can't be imported: {why}")
            if begun:
                lines.append([begun, "failed", why])
                report.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            results = [line for line in lines if line[1] != "begun"]
            for name, outcome, message in results[shown:]:
                if name is None:
                    raise InputError(f"{file} {message}")
                yield name, "wrong" if outcome == "failed" else outcome, message
            shown = len(results)


def _read_report(report):
    return [json.loads(line) for line in Path(report).read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------ in the other process


def work(file: str, report: str, through_autograd: str = "", *only: str) -> None:
    """Check the functions of a file that are not in the report yet. Before and after each, add a line of JSON to the
    report: function, outcome, message."""
    done = {name: outcome for name, outcome, _ in _read_report(report)}
    with open(report, "a", encoding="utf-8") as lines:

        def say(name: str | None, outcome: str, message: str = "") -> None:
            done[name] = outcome
            lines.write(json.dumps([name, outcome, message]) + "\n")
            lines.flush()

        say("the import", "begun")
        try:
            module = load_file(file)
        except Exception as error:
            return say(None, "wrong", f"can't be imported: {describe(error, file)}")
        learner = {name: getattr(module, name) for name in ORDER if callable(getattr(module, name, None))}
        if not learner:
            return say(None, "wrong", f"has none of the functions: {', '.join(ORDER)}")
        for name, function in learner.items():
            if name in done or (only and name not in only):
                continue
            say(name, "begun")
            try:
                outcome, message = check(name, function, learner, done)
                if name == through_autograd:
                    check_autograd(name, function)
            except Mistake as mistake:
                outcome, message = "failed" if isinstance(mistake, Unusable) else "wrong", str(mistake)
            except NotImplementedError:
                outcome, message = "todo", ""
            except Exception as error:
                outcome, message = "failed", f"it raised {describe(error, file)}"
            say(name, outcome, message)


def load_file(file: str | Path) -> ModuleType:
    """Import a learner's file, with any suffix. Like a script, it can import the other files of its folder."""
    folder = str(Path(file).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    loader = importlib.machinery.SourceFileLoader("learners_cells", str(file))
    spec = importlib.util.spec_from_loader("learners_cells", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learners_cells"] = module
    loader.exec_module(module)
    return module


def describe(error: Exception, file: str | Path) -> str:
    """An exception, with the line of the learner's file that raised it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())[:300]}"


def check(name: str, function: Callable, learner: dict[str, Callable], done: dict) -> tuple[str, str]:
    """Check one function. Returns: "right" or "unchecked", and a message. Raises: Mistake, and the learner's errors.

    Args: learner, all functions of the file; done, the outcomes of those that were checked before.
    """
    step = name.replace("_forward", "_step_forward").replace("_backward", "_step_backward")
    first = step if step != name and done.get(step) in ("wrong", "failed") else None
    forward_name = name.replace("backward", "forward")
    if forward_name != name:
        if is_unwritten(function):
            raise NotImplementedError
        reasons = {None: "is not in the file", "todo": "is not written yet", "failed": "fails"}
        reason = reasons.get(done.get(forward_name))
        if reason:
            return "unchecked", f"it needs the cache of your own {forward_name}, which {reason}"
    dtypes = [torch.float64, torch.float32]
    for dtype in dtypes:
        try:
            for seed, sizes in enumerate(SIZES):
                if forward_name != name:
                    pair = function, learner[forward_name]
                    check_backward(name, *pair, done[forward_name] == "right", sizes, seed, dtype, first)
                else:
                    check_forward(name, function, sizes, seed, dtype, first)
            return "right", check_large_scores(name, function, dtype)
        except RuntimeError as error:  # a solution that creates float32 tensors itself needs float32 arguments
            if dtype == dtypes[-1] or not any(word in str(error).lower() for word in ("dtype", "double", "float")):
                raise
    raise AssertionError("the last dtype returns or raises")


def is_unwritten(function: Callable) -> bool:
    """Whether a function is still as it is in the starter file."""
    code = getattr(function, "__code__", None)
    return code is not None and "NotImplementedError" in code.co_names


def trainable_cells(names: set[str]) -> list[str]:
    """The names of the cells whose two sequence functions are among these right functions."""
    return [cell.name for cell in CELLS.values() if {f"{cell.prefix}_forward", f"{cell.prefix}_backward"} <= names]


if __name__ == "__main__":
    work(*sys.argv[1:])
