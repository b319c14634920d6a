"""Check your own functions: which are right, what is wrong, by how much, and which known mistake it is."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..classroom.checking import check_file, trainable_cells
from ..classroom.plain_cells import ORDER
from ..classroom.starter import write_starter
from ..errors import InputError
from .common import ArgumentParser, positive, script_for

MARKS = {"right": "right", "wrong": "WRONG", "unchecked": "not checked", "todo": "not written yet"}


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="rnn_lstm_captioning check", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a Python file with any of the functions")
    parser.add_argument("--new", action="store_true", help="write FILE, with the functions to fill in")
    parser.add_argument(
        "--need", nargs="+", choices=ORDER, default=[], metavar="NAME", help="exit code 1 if one is not written"
    )
    parser.add_argument(
        "--timeout",
        type=positive(float),
        default=60,
        metavar="S",
        help="after S seconds, stop the running function (%(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0: no mistake; 1: a mistake was found, or a needed function is missing; 2: the file can't be used."""
    args = get_args_parser().parse_args(arguments)
    if args.new:
        write_starter(args.file)
        print(f"wrote {args.file}; fill in what you like, and run python -m rnn_lstm_captioning check {args.file}")
        return
    if args.file.is_dir():
        raise InputError(f"{args.file} is a folder; name a Python file")
    if not args.file.is_file():
        raise InputError(f"{args.file}: there is no such file; --new {args.file} writes one to start from")
    outcomes: dict[str, str] = {}
    for name, outcome, message in check_file(args.file, args.timeout):
        outcomes[name] = outcome
        print(f"{name:<26} {MARKS[outcome]}{': ' if message else ''}{message}", flush=True)
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in MARKS}
    if counts["todo"] == len(outcomes):
        raise InputError(f"{args.file} has none of the functions filled in: {', '.join(ORDER)}")
    missing = [name for name in args.need if outcomes.get(name, "todo") == "todo"]
    parts = [f"{counts['right']} right, {counts['wrong']} wrong"]
    parts += [f"{counts[outcome]} {MARKS[outcome]}" for outcome in ("unchecked", "todo") if counts[outcome]]
    parts += [f"needed and not written: {', '.join(missing)}"] if missing else []
    print(", ".join(parts))
    if counts["wrong"] + counts["unchecked"] or missing:
        sys.exit(1)
    cells = trainable_cells({name for name, outcome in outcomes.items() if outcome == "right"})
    if cells:
        print(f"train with it: {script_for('train', cells[-1], args.file)}")
