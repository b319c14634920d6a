"""Check a learner's own functions. The checker calls every function in a file that has a known name, in numpy or torch,
and compares its results with the right values and gradients. It names one known mistake, or two. The learner's code
runs in its own process, with a time limit.
"""

import ast
import contextlib
import difflib
import json
import math
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from ..cells import CELLS
from ..errors import InputError
from ..files import open_file, read_text
from .calling import Function, Mistake, Unusable, find_functions
from .judging import Judgement, Learner, check_autograd, judge
from .plain_cells import ORDER

Result = tuple[str, str, str]  # a function, its outcome ("right", "wrong", "waits", "unchecked", "todo"), a message


def check_file(file: Path, timeout: float, only: Sequence[str] = (), through_autograd: str = "") -> Iterator[Result]:
    """Check the functions of a file in another process.

    Args: file; timeout, in seconds: then the running function is stopped, and the next ones get the same time again;
        only, check these functions and no others; through_autograd, a forward whose gradients autograd must find.
    Yields: a result for each function, in the order of the checks.
    Raises: InputError if the file can't be used.
    """
    done: dict[str, str] = {}
    finished = False
    while not finished:  # once, and again after each function that did not return
        begun = ""
        job = {"file": str(file.resolve()), "done": done, "only": only, "through_autograd": through_autograd}
        with _Worker(job) as worker:
            while True:
                try:
                    name, outcome, message = worker.next_line(timeout if begun else None)
                except EOFError as end:
                    if not begun:  # the checker itself could not start
                        raise InputError(f"{file} can't be checked: {end}") from end
                    name, outcome, message = begun, "failed", str(end)
                if outcome == "begun":
                    begun = name
                    continue
                if outcome == "finished":
                    finished = True
                    break
                if name == THE_IMPORT:
                    prefix = "can't be imported: " if outcome == "failed" else ""
                    raise InputError(f"{file} {prefix}{message}")
                ended, done[name] = outcome == "failed" and message == worker.end, outcome
                yield name, "wrong" if outcome == "failed" else outcome, message
                if ended:
                    break


class _Worker:
    """The other process. It is ended, with all processes that it started, when the block ends."""

    def __init__(self, job):
        self.token, self.end = secrets.token_hex(8), ""
        # the package comes last: a learner's file numpy.py beside it does not hide the library
        code = f"import sys; sys.path = [*sys.path[1:], {str(Path(__file__).parents[2])!r}]; "
        code += f"from {__name__} import work; work()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.lines: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(json.dumps(job | {"token": self.token}).encode() + b"\n")

    def _read(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def next_line(self, timeout: float | None) -> list[str]:
        """The next line of the report. Raises: EOFError that says why there is none."""
        latest = math.inf if timeout is None else time.monotonic() + timeout
        ended = False
        while True:
            try:
                line = self.lines.get(timeout=0.05)
            except queue.Empty:
                if ended:
                    code = self.process.returncode
                    known = {number.value: number.name for number in signal.Signals}
                    how = f"exit code {code}" if code >= 0 else f"signal {known.get(-code, -code)}"
                    self.end = f"it ended the whole process ({how})"
                    raise EOFError(self.end) from None
                ended = self.process.poll() is not None  # then read what is left
                if time.monotonic() > latest:
                    self.end = f"it did not finish within {timeout:g} seconds: is there an endless loop?"
                    raise EOFError(self.end) from None
                continue
            if line.startswith(self.token.encode()):  # anything else was not written by the checker
                return json.loads(line[len(self.token) :])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


# ------------------------------------------------------------------------ in the other process

THE_IMPORT = "the import"


def work() -> None:
    """Do the job that standard input has, as JSON; standard output gets lines of JSON: function, outcome, message. What
    the learner's code prints goes to standard error."""
    job = json.loads(sys.stdin.readline())
    home, channel = os.getpid(), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    torch.set_num_threads(1)  # the tensors are small
    limit_memory()

    def say(name: str, outcome: str, message: str = "") -> None:
        if os.getpid() != home:  # the learner's code has made a copy of this process
            os._exit(0)
        channel.write(job["token"] + json.dumps([name, outcome, message]) + "\n")
        channel.flush()

    check_functions(job["file"], say, job["done"], job["only"], job["through_autograd"])
    say("", "finished")


def check_functions(
    file: str, say: Callable, done: dict[str, str] | None = None, only: Sequence[str] = (), through_autograd: str = ""
) -> None:
    """Check the functions of a file that are not done yet. Before and after each, ``say(name, outcome, message)`` is
    called, before it with the outcome "begun". The other arguments are those of :func:`check_file`."""
    outcomes = dict(done or {})
    say(THE_IMPORT, "begun")
    try:
        module = load_file(file)
    except BaseException as error:  # also what ends a program: SystemExit, KeyboardInterrupt
        return say(THE_IMPORT, "wrong", f"can't be imported: {describe(error, file)}")
    functions = find_functions(module)
    if not functions:
        return say(THE_IMPORT, "wrong", f"has none of the functions: {', '.join(ORDER)}")
    for name, meant in misspelled(module, functions).items():
        if meant not in (done or ()):
            say(meant, "todo", f"there is a function {name}, which is not a known name")
            outcomes[meant] = "todo"
    for name in functions:
        if name in (done or ()) or (only and name not in only):
            continue
        say(name, "begun")
        torch.set_default_device(None), torch.set_default_dtype(torch.float32), torch.set_grad_enabled(True)
        try:
            outcome, message = check(name, functions, outcomes)
            if name == through_autograd:
                check_autograd(functions[name])
        except Mistake as mistake:
            outcome, message = "failed" if isinstance(mistake, Unusable) else "wrong", str(mistake)
        except NotImplementedError:
            outcome, message = "todo", ""
        except BaseException as error:
            outcome, message = "failed", f"it raised {describe(error, file)}"
        outcomes[name] = outcome
        say(name, outcome, message)


def misspelled(module: ModuleType, functions: Mapping[str, Function]) -> dict[str, str]:
    """The functions of a file whose names are nearly those of functions that are missing: name -> what may be meant."""
    found: dict[str, str] = {}
    for name, value in vars(module).items():
        if callable(value) and name not in ORDER and getattr(value, "__module__", "") == module.__name__:
            near = difflib.get_close_matches(name, [known for known in ORDER if known not in functions], 1, 0.93)
            found |= {name: near[0]} if near else {}
    return found


def limit_memory(more: float = 3e9) -> None:
    """From now on, this process gets at most so many bytes more; then Python raises MemoryError."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    used = (
        int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[5]) * resource.getpagesize()
        if _HAS_PROC
        else 0
    )
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(used + more)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if highest < 0 else min(wanted, highest), highest))


_HAS_PROC = Path("/proc/self/statm").exists()


def load_file(file: str | Path) -> ModuleType:
    """Import a learner's file, with any suffix, or a notebook. Like a script, it can import the other files of its
    folder."""
    open_file(file, largest=1e8).close()
    folder = str(Path(file).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = ModuleType("learners_cells")
    module.__file__ = str(file)
    sys.modules["learners_cells"] = module
    if Path(file).suffix == ".ipynb":
        _run_notebook(file, module)
    else:
        exec(compile(Path(file).read_bytes(), str(file), "exec"), vars(module))
    return module


def _run_notebook(file, module):
    """Run the imports and definitions of a notebook, and the assignments that they need, but no training."""
    cells = json.loads(read_text(file, largest=1e8))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell.get("cell_type") == "code"]
    parts: list[ast.stmt] = []
    for source in sources:
        lines = ["pass" if re.match(r"\s*[%!?]", line) else line for line in source.split("\n")]
        with contextlib.suppress(SyntaxError):  # a cell with a shell command, or an unfinished one
            parts += ast.parse("\n".join(lines)).body
    definitions = [part for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    used = {node.id for part in definitions for node in ast.walk(part) if isinstance(node, ast.Name)}
    for part in parts:
        targets = part.targets if isinstance(part, ast.Assign) else []
        needed = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)} & used
        if needed or isinstance(part, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            with contextlib.suppress(Exception):  # a module of the course that is not here
                exec(compile(ast.Module([part], []), str(file), "exec"), vars(module))


def describe(error: BaseException, file: str | Path) -> str:
    """An exception, with the line of the learner's file that raised it."""
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:  # whatever the learner's class does
        text = "(its text can't be printed)"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    of_cell = " of its cell" if str(file).endswith(".ipynb") else ""
    where = f" in line {lines[-1]}{of_cell}" if lines else ""
    return f"{type(error).__name__}{where}{': ' if text else ''}{text}"


def check(name: str, functions: Mapping[str, Function], outcomes: dict[str, str]) -> Judgement:
    """Check one function in float64, or, if it makes float32 tensors itself, in float32.

    Args: functions, all functions of the file; outcomes, of those that were checked before.
    Raises: Mistake, NotImplementedError, and the learner's errors.
    """
    if is_unwritten(functions[name].code):
        raise NotImplementedError
    try:
        return judge(name, Learner(functions, outcomes, torch.float64))
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in ("dtype", "double", "float")):
            raise
    return judge(name, Learner(functions, outcomes, torch.float32))


def is_unwritten(function: Callable) -> bool:
    """Whether a function is still as it is in the starter file."""
    code = getattr(function, "__code__", None)
    return code is not None and "NotImplementedError" in code.co_names


def trainable_cells(names: set[str], file: Path) -> list[str]:
    """The names of the cells that a file can train, whose functions with these names are right: those with both
    sequence functions, or with a forward in torch, which autograd differentiates."""
    found, text = [], read_text(file)
    for cell in CELLS.values():
        forward, backward = f"{cell.prefix}_forward", f"{cell.prefix}_backward"
        plain = re.search(rf"^def {forward}\(", text, re.MULTILINE) and file.suffix != ".ipynb"
        autograd = backward not in text and re.search(r"^(import|from) torch", text, re.MULTILINE)
        if plain and forward in names and (backward in names or autograd):
            found.append(cell.name)
    return found
