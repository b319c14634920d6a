"""Building a caption file: against bare decoding and resizing of the same pictures, and at COCO's size.

    python benchmarks/build.py --folder FOLDER [--names 118287]        # Linux

Generates 2,000 JPEGs of 640x480 pixels. Both sides then work on them in turn: the bare side opens, decodes
and resizes with Pillow in as many threads, and keeps nothing; the build also reads captions, makes the
vocabulary and writes the file. With --names N, the same pictures under N names (links) and five captions for
each are built once more, and the peak anonymous memory of that process is printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from coco_size import ROOT, watch_memory
from PIL import Image

PICTURES, SIZE = 2000, 112


def generate(folder):
    """Smooth noise: JPEG files of about the size of a photograph's."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        fine = Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        Image.blend(coarse.resize((640, 480), Image.Resampling.BICUBIC), fine, 0.1).save(
            folder / f"{k}.jpg", quality=90
        )


def write_captions(path, names):
    rows = (
        f"{name},picture number {k % 997} with words {k % 31} and {c}\n"
        for k, name in enumerate(names)
        for c in range(5)
    )
    path.write_text("image,caption\n" + "".join(rows))


def bare(folder, names):
    def load(name):
        with Image.open(folder / name) as image:
            image.draft("RGB", (2 * SIZE, 2 * SIZE))
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(load, names):
            pass


def build(folder, captions, out):
    """Start a build in a process of its own."""
    command = [sys.executable, "-m", "rnn_lstm_captioning.data.build", "--images", folder, "--captions", captions]
    command += ["--out", out, "--size", str(SIZE), "--word-threshold", "1"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int)
    args = parser.parse_args()
    folder = args.folder.resolve()
    photos, captions = folder / "photos", folder / "captions.csv"
    if not photos.exists():
        generate(photos)
    names = [f"{k}.jpg" for k in range(PICTURES)]
    write_captions(captions, names)
    sys.path.insert(0, str(ROOT))
    from rnn_lstm_captioning.data.build import main as build_here

    arguments = [
        "--images",
        photos,
        "--captions",
        captions,
        "--out",
        folder / "x.pt",
        "--size",
        SIZE,
        "--word-threshold",
        1,
    ]
    times = ([], [])
    for turn in range(args.rounds + 1):
        for side, run in enumerate((lambda: bare(photos, names), lambda: build_here([str(a) for a in arguments]))):
            start = time.perf_counter()
            run()
            if turn:
                times[side].append(time.perf_counter() - start)
    rates = [PICTURES / statistics.median(side) for side in times]
    print(f"bare {rates[0]:.0f} pictures/s, build {rates[1]:.0f} pictures/s: {rates[1] / rates[0]:.0%}")
    if args.names:
        links = folder / "links"
        links.mkdir(exist_ok=True)
        names = [f"{k:06}.jpg" for k in range(args.names)]
        for k, name in enumerate(names):
            if not (links / name).exists():
                (links / name).symlink_to(photos / f"{k % PICTURES}.jpg")
        write_captions(captions, names)
        start = time.perf_counter()
        process = build(links, captions, folder / "big.pt")
        peak = watch_memory(process)
        size = (folder / "big.pt").stat().st_size / 1e9
        print(
            f"{args.names} pictures, {5 * args.names} captions: {time.perf_counter() - start:.0f} s, {size:.1f} GB, "
            f"peak anonymous memory {peak:.2f} GB"
        )


if __name__ == "__main__":
    main()
