r"""How good are the captions? Train every cell with several seeds on Flickr8k, and score greedy and beam search.

    python -m benchmarks.quality --weights FILE --folder runs       # --cells, --sizes, --seeds, --jobs, --flags
    python -m benchmarks.quality --weights FILE --folder runs --sizes 224 --cells attn --stages finetuned self_critical
    python -m benchmarks.quality --weights FILE --folder runs --sizes 112 --enlarge 224 --cells attn \
        --stages finetuned self_critical
    python -m benchmarks.quality --table docs/results.md --figure docs/images/quality.png

Needs datasets/flickr8k_112.pt, _224.pt and, for the later stages, _320.pt (recipes/flickr8k.args: how to build them).
Every run is train_*.py @recipes/flickr8k.args (the LSTM with --image-input first-token), then test_*.py --metrics. Each
of the --stages begins with the best checkpoint of the one before. A run whose results are already in the folder is not
repeated. Prints a table with mean and spread (standard deviation) over the seeds, and the minutes of the fastest run,
with the stages before it. --ensemble adds the ensemble of all seeds. --curves FILE draws the training curves of the
first seed. --figure FILE draws CIDEr against minutes, for the rows of a table like the one in docs/results.md.
"""

import argparse
import csv
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from rnn_lstm_captioning.commands.common import SCRIPTS
from rnn_lstm_captioning.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[1]
PLAIN = ["--allow-repeats", "--allow-bad-endings"]
SEARCHES = {
    "greedy": [*PLAIN, "--beam", "1"],
    "beam 5": [*PLAIN, "--beam", "5", "--length-penalty", "0"],
    "beam 5, length penalty 0.7": [*PLAIN, "--beam", "5", "--length-penalty", "0.7"],
    "default": [],  # beam 5, length penalty 1, no repeats, no bad endings
}
CELL_FLAGS = {"rnn": [], "lstm": ["--image-input", "first-token"], "attn": []}
FINER = {224: 320}  # pixels, of the stored images of the first stage and of the later ones


def folder_of(cell, size, seed, stage, args):
    enlarged = args.enlarge and f"enlarged{args.enlarge}"
    return (args.folder / "_".join(filter(None, [cell, str(size), enlarged, str(seed), stage]))).resolve()


def pixels_of(size, stage):
    return FINER.get(size, size) if stage else size


def data_of(size, stage):
    return f"datasets/flickr8k_{pixels_of(size, stage)}.pt"


def call(log, args, *arguments):
    """Run a script, with its output in a file."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))}
    with open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, *map(str, arguments)]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=True)


def score(cell, checkpoints, data, folder, args):
    """Test with every search, unless the results are already there."""
    for search in args.searches:
        flags = SEARCHES[search]
        out = folder / search.replace(" ", "")
        if not (out / "metrics.json").exists():
            flags = ["--checkpoint", *checkpoints, "--metrics", "--num-samples", "0", "--data", data, *flags]
            call(folder / "test.txt", args, f"test_{SCRIPTS[cell]}.py", *flags, "--out", out)


def run(cell, size, seed, stage, args):
    """Train and test once, unless the results are already there."""
    folder = folder_of(cell, size, seed, stage, args)
    folder.mkdir(parents=True, exist_ok=True)
    data = data_of(size, stage)
    if not (folder / "seconds").exists():
        start = time.monotonic()
        flags = ["--encoder-weights", args.weights, "--seed", seed, "--out", folder, "--quiet", *CELL_FLAGS[cell]]
        if stage:
            before = args.stages[args.stages.index(stage) - 1]
            flags += ["--init", folder_of(cell, size, seed, before, args) / f"{cell}_best.pt"]
        recipe = "_".join(filter(None, ["flickr8k", stage]))
        if args.enlarge or stage:
            flags += ["--image-size", args.enlarge or pixels_of(size, stage)]
        flags += ["--data", data, *shlex.split(args.flags)]
        call(folder / "train.txt", args, f"train_{SCRIPTS[cell]}.py", f"@recipes/{recipe}.args", *flags)
        (folder / "seconds").write_text(str(time.monotonic() - start))
    score(cell, [folder / f"{cell}_best.pt"], data, folder, args)


def run_seed(cell, size, seed, args):
    for stage in args.stages:
        run(cell, size, seed, stage, args)


def run_ensemble(cell, size, stage, args):
    """Score the ensemble of all seeds."""
    folder = folder_of(cell, size, "ensemble", stage, args)
    folder.mkdir(parents=True, exist_ok=True)
    members = [folder_of(cell, size, seed, stage, args) / f"{cell}_best.pt" for seed in range(args.seeds)]
    score(cell, members, data_of(size, stage), folder, args)
    return folder


def minutes_of(cell, size, seed, stage, args):
    """The training time of a stage, with those before it."""
    stages = args.stages[: args.stages.index(stage) + 1]
    return sum(float((folder_of(cell, size, seed, s, args) / "seconds").read_text()) for s in stages) / 60


def read(folder, search):
    result = json.loads((folder / search.replace(" ", "") / "metrics.json").read_text())
    scores = result["scores"]["the model"] | {"distinct": 100 * result["diversity"]["distinct"]}
    return scores | {"words": result["diversity"]["words_used"]}


def print_row(name, size, folders, minutes, columns, searches):
    for search in searches:
        results = [read(folder, search) for folder in folders]
        values = []
        for column in columns:
            numbers = [result[column] for result in results]
            spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
            values.append(f"{statistics.mean(numbers):.{0 if column == 'words' else 1}f}{spread}")
        print(f"| {name} | {size} | {search} | {' | '.join(values)} | {minutes:.0f} |", flush=True)


def read_table(path):
    """The rows of a table that this benchmark printed: name with pixels -> (minutes, CIDEr of its best search)."""
    lines = [line.strip("| ").split(" | ") for line in path.read_text(encoding="utf-8").splitlines()]
    header = next(line for line in lines if "minutes" in line and "CIDEr" in line)
    rows = [dict(zip(header, line)) for line in lines if len(line) == len(header) and line != header]
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        name, cider = f"{row['cell']}, {row['pixels']} px", float(row["CIDEr"].split(" ")[0])
        if name not in best or best[name][1] < cider:
            best[name] = float(row["minutes"]), cider
    return best


def draw_quality(path, rows):
    """CIDEr against the minutes of training."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (minutes, cider) in rows.items():
        axes.plot(minutes, cider, "o", color="#1f5fa8")
        left = minutes > 100  # there is no room on the right
        place = {"xytext": (-7 if left else 7, -3), "ha": "right" if left else "left"}
        axes.annotate(name, (minutes, cider), **place, textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="minutes of training on one core", ylabel="CIDEr, percent (best search)")
    axes.set_xticks([4, 8, 15, 30, 60, 120, 240], ["4", "8", "15", "30", "60", "120", "240"])
    axes.set_xlim(3, 300)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_curves(path, size, args):
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for cell in args.cells:
        with open(args.folder / f"{cell}_{size}_0" / f"{cell}_log.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        (line,) = left.plot(epochs, [float(row["val_loss_per_word"]) for row in rows], label=f"{cell}, validation")
        left.plot(epochs, [float(row["train_loss_per_word"]) for row in rows], ":", color=line.get_color())
        right.plot(epochs, [float(row["val_cider"]) for row in rows], label=cell)
    left.set(xlabel="epoch", ylabel="nats per word (dotted: training)")
    right.set(xlabel="epoch", ylabel="CIDEr of greedy captions, percent")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Flickr8k, {size} pixels")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="imagenet", help="imagenet, or a file, for MobileNetV2 (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--cells", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[112, 224])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, which share the threads")
    parser.add_argument("--flags", default="", help="more flags for train_*.py, in quotes")
    parser.add_argument("--stages", nargs="*", default=[], help="recipes/flickr8k_STAGE.args, one after the other")
    parser.add_argument("--enlarge", type=int, metavar="PIXELS", help="enlarge the stored images for the CNN")
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--ensemble", action="store_true")
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--figure", type=Path, help="draw the table of --table, and train nothing")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "results.md")
    args = parser.parse_args()
    if args.figure:
        draw_quality(args.figure, read_table(args.table))
        return
    if args.weights != "imagenet":
        args.weights = Path(args.weights).resolve()
    args.stages = ["", *args.stages]
    tasks = [(cell, size, seed) for seed in range(args.seeds) for size in args.sizes for cell in args.cells]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda task: run_seed(*task, args), tasks))
    columns = [*METRICS, "distinct", "words"]
    print(f"| cell | pixels | search | {' | '.join(columns)} | minutes |\n|" + "---|" * (len(columns) + 4))
    for stage, size, cell in itertools.product(args.stages, args.sizes, args.cells):
        folders = [folder_of(cell, size, seed, stage, args) for seed in range(args.seeds)]
        name, pixels = f"{cell} {stage.replace('_', ' ')}".strip(), str(pixels_of(size, stage))
        if args.enlarge:
            pixels += f" (enlarged to {args.enlarge})"
        minutes = [minutes_of(cell, size, seed, stage, args) for seed in range(args.seeds)]
        # the fastest run was disturbed least
        print_row(name, pixels, folders, min(minutes), columns, args.searches)
        if args.ensemble:
            folder = run_ensemble(cell, size, stage, args)
            print_row(f"{name}, ensemble", pixels, [folder], sum(minutes), columns, args.searches)
    if args.curves:
        draw_curves(args.curves, args.sizes[-1], args)


if __name__ == "__main__":
    main()
