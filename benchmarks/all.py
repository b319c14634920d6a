"""All tables in a quick form, in at most ten minutes, with a description of the machine, as one Markdown file.

    make benchmark                       # or: python -m benchmarks.all --device cuda --out FILE --minutes 10

Each table is printed by the command above it. A command that takes longer than what is left of the time is stopped, and
the file says so. The figures of benchmarks/README.md come from longer runs of the same commands.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
import torchvision

from .cells import machine

# module, its flags in the quick form, and whether it runs on a GPU too
TABLES = [
    ("cells", "--seconds 0.1", True),
    ("loss", "--rounds 3", False),
    ("captioning", "--seconds 1", True),
    ("training", "--rounds 1 --batch-size 128", True),
    ("build", "--rounds 1 --folder {folder}", False),
    ("growth", "--out {folder}/growth.png", False),
]


def description(device: str) -> list[str]:
    """What the figures depend on: a Markdown list."""
    return [
        f"- {machine(device)}",
        f"- {torch.get_num_threads()} threads, {platform.system()}, Python {platform.python_version()}",
        f"- torch {torch.__version__}, torchvision {torchvision.__version__}, numpy {numpy.__version__}",
        f"- {time.strftime('%d %B %Y')}",
    ]


def run(name: str, flags: str, seconds: float) -> tuple[str, float]:
    """The output of a benchmark, and how long it took. What is left unfinished is said in the output."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags.split()]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        output = done.stdout
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            output += f"\nIt failed (exit code {done.returncode}): {lines[-1]}\n"
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        output += f"\nIt was stopped after {seconds:.0f} seconds: the time for all tables was over.\n"
    return output.strip(), time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark.md"))
    parser.add_argument("--minutes", type=float, default=10, help="for all tables together (%(default)s)")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    parts = ["# Benchmarks of this machine", "", *description(args.device), ""]
    print("\n".join(parts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, flags, anywhere in TABLES:
            flags = flags.format(folder=folder) + (f" --device {args.device}" if anywhere else "")
            output, seconds = run(name, flags, max(1.0, end - time.monotonic()))
            shown = flags.replace(folder, "FOLDER")
            part = ["", f"## {name}", "", f"`python -m benchmarks.{name} {shown}`, {seconds:.0f} s", "", output, ""]
            print("\n".join(part), flush=True)
            parts += part
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
