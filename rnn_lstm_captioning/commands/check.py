"""Check your own functions: which are right, what is wrong, by how much, and which known mistake it is."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..classroom.checking import Result, check_file, trainable_cells
from ..classroom.grading import gradescope_results, points_from
from ..classroom.ladder import needed_of, write_ladder
from ..classroom.puzzles import find_puzzle, write_puzzle
from ..classroom.starter import write_starter
from ..errors import InputError
from ..storage import write_text
from .common import say, script_for
from .flags import check_flags

MARKS = {"right": "right", "wrong": "WRONG", "waits": "waits", "unchecked": "not checked", "todo": "not written yet"}
COMMAND = "python -m rnn_lstm_captioning check"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0: no mistake; 1: a mistake was found, or a needed function is missing; 2: the file can't be used."""
    args = check_flags().parse_args(arguments)
    points = points_from(args.need)
    if args.answer and not args.puzzle:
        raise InputError("--answer needs --puzzle N")
    if args.puzzle:
        return puzzle(args)
    if args.file is None:
        raise InputError("name a file to check, or use --new FILE or --puzzle N")
    if args.new:
        return begin(args.file)
    if args.file.is_dir():
        if args.json or args.gradescope or args.need:
            raise InputError(f"--json, --need and --gradescope need a file, and {args.file} is a folder")
        return climb(args.file, args.timeout)
    if not args.file.is_file():
        raise InputError(f"{args.file}: there is no such file; --new {args.file} writes one to start from")
    results: list[Result] = []
    for name, outcome, message in check_file(args.file, args.timeout):
        results.append((name, outcome, message))
        if not args.json:
            say(line_about(name, outcome, message))
    if args.json:
        print_json(args.file, results, points)
    if args.gradescope:
        write_text(args.gradescope, json.dumps(gradescope_results(results, points, MARKS), indent=2))
    conclude(args, {name: outcome for name, outcome, _ in results}, points)


def line_about(name: str, outcome: str, message: str) -> str:
    """What is printed about one function."""
    return f"{name:<26} {MARKS[outcome]}{': ' if message else ''}{message}"


def conclude(args: Namespace, outcomes: dict[str, str], points: dict[str, float]) -> None:
    """Print the sums and what to do first, and leave with the exit code."""
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in MARKS}
    if counts["todo"] == len(outcomes):
        raise InputError(f"{args.file} has none of its functions filled in")
    missing = [name for name in points if outcomes.get(name, "todo") == "todo"]
    parts = [f"{counts['right']} right, {counts['wrong']} wrong"]
    parts += [f"{counts[outcome]} {MARKS[outcome]}" for outcome in ("waits", "unchecked", "todo") if counts[outcome]]
    parts += [f"needed and not written: {', '.join(missing)}"] if missing else []
    first = next((name for name, outcome in outcomes.items() if outcome == "wrong"), None)
    parts += [f"correct {first} first"] if first and counts["wrong"] + counts["waits"] > 1 else []
    if not args.json:
        say(", ".join(parts))
    if counts["wrong"] + counts["waits"] + counts["unchecked"] or missing:
        sys.exit(1)
    cells = trainable_cells({name for name, outcome in outcomes.items() if outcome == "right"}, args.file)
    if cells and not args.json:
        say(f"train with it: {script_for('train', cells[-1], args.file)}")


def print_json(file: Path, results: list[Result], points: dict[str, float]) -> None:
    """Print all results as JSON."""
    functions: list[dict[str, object]] = []
    for name, outcome, message in results:
        functions.append({"name": name, "outcome": outcome, "message": message})
        if name in points:
            functions[-1]["points"] = points[name] if outcome == "right" else 0
    text = json.dumps({"file": str(file), "functions": functions}, indent=2, ensure_ascii=False)
    for line in text.splitlines():
        say(line)


def begin(file: Path) -> None:
    """Write a starter file; or, if its name has no suffix, a folder with the ladder."""
    if file.suffix:
        write_starter(file)
        say(f"wrote {file}; fill in what you like, and run {COMMAND} {file}")
    else:
        paths = write_ladder(file)
        say(f"wrote {len(paths)} exercises into {file}; begin with {paths[0].name}, and run {COMMAND} {file}")


def climb(folder: Path, timeout: float) -> None:
    """Check the files of a folder in their order, up to the first that is not done."""
    needed = needed_of(folder)
    files = sorted({*folder.glob("*.py"), *folder.glob("*.ipynb"), *(folder / name for name in needed)})
    if not files:
        raise InputError(f"{folder} has no Python files; --new {folder} writes a ladder of exercises into a new folder")
    for number, file in enumerate(files):
        if not file.exists():
            say(f"{number} of {len(files)} done; next: {file}, which is missing")
            sys.exit(1)
        results = list(check_file(file, timeout))
        found = {name for name, _, _ in results}
        results += [(name, "todo", "it is not in the file") for name in needed.get(file.name, ()) if name not in found]
        if all(outcome == "right" for _, outcome, _ in results):
            remarks = [message for _, _, message in results if message]
            say(f"{file.name:<26} done{': ' if remarks else ''}{'; '.join(remarks)}")
            continue
        for name, outcome, message in results:
            say(line_about(name, outcome, message))
        say(f"{number} of {len(files)} done; next: {file}")
        sys.exit(1)
    say(f"all {len(files)} done")


def puzzle(args: Namespace) -> None:
    """Write a puzzle, or judge an answer."""
    found = find_puzzle(args.puzzle)
    if not args.answer:
        path = write_puzzle(args.puzzle)
        say(f"wrote {path}: one line is wrong; correct it, and run {COMMAND} --puzzle {args.puzzle} --answer")
        return
    file = args.file or Path(f"puzzle_{args.puzzle:02}.py")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; --puzzle {args.puzzle} writes it")
    results = list(check_file(file, args.timeout))
    outcomes = {name: outcome for name, outcome, _ in results}
    if all(outcome == "right" for outcome in outcomes.values()) and found.function in outcomes:
        say(f"solved: {found.answer}")
        return
    wrong = [name for name, outcome in outcomes.items() if outcome == "wrong"]
    say(f"not yet: {wrong[0] if wrong else found.function} does not give the right values; {COMMAND} {file} says more")
    sys.exit(1)
