"""Check your own functions: which are right, what is wrong, by how much, and which known mistake it is."""

import sys
from collections.abc import Sequence

from ..classroom.checking import check_file, trainable_cells
from ..classroom.plain_cells import ORDER
from ..classroom.starter import write_starter
from ..errors import InputError
from .common import say, script_for
from .flags import check_flags

MARKS = {"right": "right", "wrong": "WRONG", "waits": "waits", "unchecked": "not checked", "todo": "not written yet"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 0: no mistake; 1: a mistake was found, or a needed function is missing; 2: the file can't be used."""
    args = check_flags().parse_args(arguments)
    unknown = sorted(set(args.need) - set(ORDER))
    if unknown:
        raise InputError(f"--need: there is no function {unknown[0]}; the functions are {', '.join(ORDER)}")
    if args.new:
        write_starter(args.file)
        say(f"wrote {args.file}; fill in what you like, and run python -m rnn_lstm_captioning check {args.file}")
        return
    if args.file.is_dir():
        raise InputError(f"{args.file} is a folder; name a Python file")
    if not args.file.is_file():
        raise InputError(f"{args.file}: there is no such file; --new {args.file} writes one to start from")
    outcomes: dict[str, str] = {}
    for name, outcome, message in check_file(args.file, args.timeout):
        outcomes[name] = outcome
        say(f"{name:<26} {MARKS[outcome]}{': ' if message else ''}{message}")
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in MARKS}
    if counts["todo"] == len(outcomes):
        raise InputError(f"{args.file} has none of the functions filled in: {', '.join(ORDER)}")
    missing = [name for name in args.need if outcomes.get(name, "todo") == "todo"]
    parts = [f"{counts['right']} right, {counts['wrong']} wrong"]
    parts += [f"{counts[outcome]} {MARKS[outcome]}" for outcome in ("waits", "unchecked", "todo") if counts[outcome]]
    parts += [f"needed and not written: {', '.join(missing)}"] if missing else []
    say(", ".join(parts))
    if counts["wrong"] + counts["waits"] + counts["unchecked"] or missing:
        sys.exit(1)
    cells = trainable_cells({name for name, outcome in outcomes.items() if outcome == "right"})
    if cells:
        say(f"train with it: {script_for('train', cells[-1], args.file)}")
