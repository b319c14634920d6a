"""Building a caption file, compared with only decoding and resizing the same images; and at COCO's size.

    python -m benchmarks.build --folder FOLDER [--names 118287]        # Linux

Generates 2,000 JPEGs of 640x480 pixels with 10,000 names (links). Both sides then process them, interleaved. The bare
side opens, decodes and resizes with Pillow in as many threads, and keeps nothing. The build also reads the captions,
makes the vocabulary and writes the file. --names N then builds a file from N names, with five captions for each, and
prints the peak anonymous memory of that process.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from .coco_size import ROOT, watch_memory

IMAGES, NAMES, SIZE = 2000, 10_000, 112


def generate(folder):
    """Write smooth noise as JPEG files, each about as large as the file of a photograph."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        fine = Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        Image.blend(coarse.resize((640, 480), Image.Resampling.BICUBIC), fine, 0.1).save(
            folder / f"{k}.jpg", quality=90
        )


def make_links(folder, count):
    """Make links until the images have ``count`` names. Returns: the folder of the links."""
    links = folder / "links"
    links.mkdir(exist_ok=True)
    for k in range(len(os.listdir(links)), count):
        (links / f"{k:06}.jpg").symlink_to(folder / "photos" / f"{k % IMAGES}.jpg")
    return links


def write_captions(path, names):
    """Write a captions file in COCO's format, with all fields that COCO's own files have."""
    address = "http://images.cocodataset.org/train2017"
    images = [
        {"license": 3, "file_name": name, "coco_url": f"{address}/{name}", "height": 480, "width": 640, "id": k}
        | {"date_captured": "2013-11-14 11:18:45", "flickr_url": f"http://farm9.staticflickr.com/8186/{name}"}
        for k, name in enumerate(names)
    ]
    notes = [
        {"image_id": k, "id": 5 * k + c, "caption": f"A picture with the number {k % 997} and {k % 31} words, {c}."}
        for k in range(len(names))
        for c in range(5)
    ]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": notes}))


def bare(folder, names):
    def load(name):
        with Image.open(folder / name) as image:
            image.draft("RGB", (2 * SIZE, 2 * SIZE))
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(load, names):
            pass


def build(folder, captions, out):
    """Start a build in a process of its own. Returns: the process."""
    command = [sys.executable, "-m", "rnn_lstm_captioning", "build", "--images", folder, "--captions", captions]
    command += ["--out", out, "--size", str(SIZE), "--word-threshold", "1"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int)
    args = parser.parse_args()
    folder = args.folder.resolve()
    photos, captions = folder / "photos", folder / "captions.json"
    if not photos.exists():
        generate(photos)
    links, names = make_links(folder, NAMES), [f"{k:06}.jpg" for k in range(NAMES)]
    write_captions(captions, names)
    from rnn_lstm_captioning.commands.build import main as build_here

    arguments = f"--images {links} --captions {captions} --out {folder / 'x.pt'} --size {SIZE} --word-threshold 1"
    times = ([], [])
    for turn in range(args.rounds + 1):
        for side, run in enumerate((lambda: bare(links, names), lambda: build_here(arguments.split()))):
            start = time.perf_counter()
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                run()
            if turn:
                times[side].append(time.perf_counter() - start)
    rates = [NAMES / statistics.median(side) for side in times]
    print(f"bare {rates[0]:.0f} images/s, build {rates[1]:.0f} images/s: {rates[1] / rates[0]:.0%}")
    if args.names:
        make_links(folder, args.names)
        write_captions(captions, [f"{k:06}.jpg" for k in range(args.names)])
        start = time.perf_counter()
        process = build(links, captions, folder / "big.pt")
        peak = watch_memory(process)
        size = (folder / "big.pt").stat().st_size / 1e9
        print(
            f"{args.names} images, {5 * args.names} captions: {time.perf_counter() - start:.0f} s, {size:.1f} GB, "
            f"peak anonymous memory {peak:.2f} GB"
        )


if __name__ == "__main__":
    main()
