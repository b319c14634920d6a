"""How much memory does training on data of COCO's size need? Generates such a file and starts training runs.

    python -m benchmarks.coco_size --folder FOLDER       # needs 7 GB of disk, Linux

The file has 118,287 training images of 112 pixels (noise) with 591,753 captions, and 5,000 validation images. The first
run fills the feature cache, the others use it. Every run is stopped after some steps. Prints the seconds from the start
of the process to the end of its first step, and the peak anonymous memory of the process.
"""

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from rnn_lstm_captioning.data.vocabulary import SPECIAL_TOKENS, encode_captions

SPLITS = {"train": (118_287, 591_753), "val": (5_000, 25_014)}
V = 10_000
ROOT = Path(__file__).parents[1]


def generate(path):
    """Write the caption file. Its images are never in memory all at once."""
    random = np.random.default_rng(0)
    words = SPECIAL_TOKENS + [f"w{i}" for i in range(V - 4)]
    token_to_idx = {word: i for i, word in enumerate(words)}
    data = {"vocab": {"idx_to_token": words, "token_to_idx": token_to_idx}}
    for split, (num_images, captions) in SPLITS.items():
        raw = path.with_suffix(f".{split}.raw")
        images = np.memmap(raw, dtype=np.uint8, mode="w+", shape=(num_images, 3, 112, 112))
        for start in range(0, num_images, 1000):
            part = images[start : start + 1000]
            part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
        data[f"{split}_images"] = torch.from_numpy(images)
        rows = random.integers(4, V, (captions, 15))
        lengths = random.integers(8, 16, captions)
        texts = ([words[w] for w in row[:n]] for row, n in zip(rows, lengths))
        data[f"{split}_captions"] = encode_captions(list(texts), token_to_idx)
        data[f"{split}_image_index"] = torch.arange(captions) % num_images
    torch.save(data, path)
    for split in SPLITS:
        path.with_suffix(f".{split}.raw").unlink()


def run(script, path, steps):
    """Start a run, and stop it after ``steps``. Returns: seconds to the end of the first step, peak memory in GB."""
    command = [sys.executable, ROOT / script, "--data", path, "--encoder-weights", "none", "--out", path.parent / "cv"]
    start, peak = time.monotonic(), []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    watcher = threading.Thread(target=lambda: peak.append(watch_memory(process)))
    watcher.start()
    first, text = None, ""
    while piece := process.stderr.read(64):
        text = (text + piece)[-400:]
        done = re.findall(r"epoch 1/\d+:.*?\| (\d+)/\d+ ", text)
        if done and int(done[-1]) >= 1 and first is None:
            first = time.monotonic() - start
        if done and int(done[-1]) >= steps:
            process.send_signal(signal.SIGINT)
            break
    process.stderr.read()
    watcher.join()
    return first, peak[0]


def watch_memory(process):
    """Wait for a process to end. Returns: its peak anonymous memory in GB."""
    peak = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except FileNotFoundError:
            break
        if match := re.search(r"RssAnon:\s*(\d+)", status):
            peak = max(peak, int(match[1]) / 2**20)
        time.sleep(0.02)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="when a run is stopped (%(default)s)")
    args = parser.parse_args()
    path = args.folder / "coco_size.pt"
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        generate(path)
    print(f"{path}: {path.stat().st_size / 1e9:.1f} GB, RegNetX-400MF, batch 256")
    print("| script | cache | first step after (s) | peak anonymous memory (GB) |\n|" + "---|" * 4)
    for script, cache in (
        ("train_lstm_attention.py", "filled first"),
        ("train_lstm_attention.py", "warm"),
        ("train_lstm.py", "warm"),
    ):
        first, peak = run(script, path, args.steps)
        print(f"| {script} | {cache} | {first:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
