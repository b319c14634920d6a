"""How good are the captions? Train every cell with several seeds on Flickr8k, and score greedy and beam search.

    python -m benchmarks.quality --weights FILE --folder runs       # --cells, --sizes, --seeds, --jobs, --flags
    python -m benchmarks.quality --weights FILE --folder runs --self-critical --sizes 224

Needs datasets/flickr8k_112.pt and datasets/flickr8k_224.pt (README, "I want to train on my own images").
Every run is train_*.py @recipes/flickr8k.args (the LSTM with --image-input first-token), then test_*.py --metrics.
--self-critical adds a second stage, @recipes/flickr8k_self_critical.args. A run whose results are already in the folder
is not repeated. Prints a table with mean and spread (standard deviation) over the seeds, and the minutes of the fastest
run. --curves FILE draws the training curves of the first seed.
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
SEARCHES = {"greedy": ["--beam", "1"], "beam 5": ["--beam", "5"]}
SEARCHES["beam 5, length penalty 0.7"] = ["--beam", "5", "--length-penalty", "0.7"]
CELL_FLAGS = {"rnn": [], "lstm": ["--image-input", "first-token"], "attn": []}
STAGES = {"": "flickr8k.args", "_self_critical": "flickr8k_self_critical.args"}  # end of a folder's name -> recipe


def folder_of(cell, size, seed, stage, args):
    return (args.folder / f"{cell}_{size}_{seed}{stage}").resolve()


def run(cell, size, seed, stage, args):
    """Train and test once, unless the results are already there."""
    folder = folder_of(cell, size, seed, stage, args)
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))}
    data = ["--data", f"datasets/flickr8k_{size}.pt"]

    def call(log, *arguments):
        with open(folder / log, "w", encoding="utf-8") as file:
            command = [sys.executable, *map(str, arguments)]
            subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=True)

    if not (folder / "seconds").exists():
        start = time.monotonic()
        flags = ["--encoder-weights", args.weights, "--seed", seed, "--out", folder, "--quiet", *CELL_FLAGS[cell]]
        if stage:
            flags += ["--init", folder_of(cell, size, seed, "", args) / f"{cell}_best.pt"]
        call(
            "train.txt",
            f"train_{SCRIPTS[cell]}.py",
            f"@recipes/{STAGES[stage]}",
            *data,
            *flags,
            *shlex.split(args.flags),
        )
        (folder / "seconds").write_text(str(time.monotonic() - start))
    for search, flags in SEARCHES.items():
        out = folder / search.replace(" ", "")
        if not (out / "metrics.json").exists():
            checkpoint = ["--checkpoint", folder / f"{cell}_best.pt", "--metrics", "--num-samples", "0"]
            call("test.txt", f"test_{SCRIPTS[cell]}.py", *checkpoint, *data, *flags, "--out", out)


def run_seed(cell, size, seed, args):
    for stage in args.stages:
        run(cell, size, seed, stage, args)


def read(folder, search):
    result = json.loads((folder / search.replace(" ", "") / "metrics.json").read_text())
    scores = result["scores"]["the model"] | {"distinct": 100 * result["diversity"]["distinct"]}
    return scores | {"words": result["diversity"]["words_used"]}


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
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[112, 224])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, which share the threads")
    parser.add_argument("--flags", default="", help="more flags for train_*.py, in quotes")
    parser.add_argument("--self-critical", action="store_true", help="add the second stage, self-critical training")
    parser.add_argument("--curves", type=Path)
    args = parser.parse_args()
    if args.weights != "imagenet":
        args.weights = Path(args.weights).resolve()
    args.stages = list(STAGES) if args.self_critical else [""]
    tasks = [(cell, size, seed) for seed in range(args.seeds) for size in args.sizes for cell in args.cells]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda task: run_seed(*task, args), tasks))
    columns = [*METRICS, "distinct", "words"]
    print(f"| cell | pixels | search | {' | '.join(columns)} | minutes |\n|" + "---|" * (len(columns) + 4))
    for stage, size, cell in itertools.product(args.stages, args.sizes, args.cells):
        folders = [folder_of(cell, size, seed, stage, args) for seed in range(args.seeds)]
        # the fastest run was disturbed least
        minutes = min(float((folder / "seconds").read_text()) for folder in folders) / 60
        for search in SEARCHES:
            results = [read(folder, search) for folder in folders]
            values = []
            for column in columns:
                numbers = [result[column] for result in results]
                spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
                values.append(f"{statistics.mean(numbers):.{0 if column == 'words' else 1}f}{spread}")
            name = f"{cell}{stage.replace('_', ' ')}"
            print(f"| {name} | {size} | {search} | {' | '.join(values)} | {minutes:.0f} |", flush=True)
    if args.curves:
        draw_curves(args.curves, args.sizes[-1], args)


if __name__ == "__main__":
    main()
