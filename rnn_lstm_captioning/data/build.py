"""Make a caption file (.pt) from photographs and their captions.

python -m rnn_lstm_captioning.data.build --images DIR --captions FILE --out FILE

An interrupted build goes on where it was when the same command is given again.
"""

import hashlib
import json
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..command import ArgumentParser, positive, run_command
from ..errors import InputError, RunFailed
from ..storage import replacing, save
from ..visualize import save_contact_sheet
from ..vocabulary import build_vocabulary, encode_captions, tokenize
from .images import try_to_load
from .readers import add_list, read_captions


class Source(NamedTuple):
    """Where a split's pictures and captions come from."""

    folder: Path
    names: list  # of picture files in the folder
    captions: dict  # name -> list of raw captions


def get_args_parser():
    parser = ArgumentParser(
        prog="python -m rnn_lstm_captioning.data.build",
        description="Make a caption file (.pt) from photographs and their captions. Captions files: CSV with the "
        "columns image,caption; COCO JSON; Karpathy's dataset_*.json; Flickr's .token.txt and results.csv.",
    )
    source = parser.add_argument_group("pictures and captions")
    source.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of photographs")
    source.add_argument("--captions", type=Path, required=True, metavar="FILE", help="their captions")
    source.add_argument("--val-images", type=Path, metavar="DIR", help="those that validate, if in another folder")
    source.add_argument("--val-captions", type=Path, metavar="FILE", help="captions to validate on, as COCO has them")
    splits = parser.add_argument_group("splits (a Karpathy JSON brings its own)")
    for split in ("train", "val", "test"):
        splits.add_argument(f"--{split}-list", type=Path, metavar="FILE", help="names of its pictures, one a line")
    splits.add_argument(
        "--val-fraction", type=float, metavar="X", help="without lists: this part of the pictures validates (0.1)"
    )
    text = parser.add_argument_group("what is stored")
    text.add_argument("--out", type=Path, required=True, metavar="FILE", help="the caption file to write (.pt)")
    text.add_argument("--size", type=int, default=112, help="side of the stored pictures in pixels (112)")
    text.add_argument(
        "--word-threshold", type=positive(int), default=5, metavar="N", help="keep words seen N times in training (5)"
    )
    text.add_argument(
        "--max-length", type=positive(int), default=15, metavar="N", help="cut captions after N words (15)"
    )
    parser.add_argument("--workers", type=positive(int), default=os.cpu_count(), help="pictures decoded at one time")
    return parser


def main(arguments=None):
    args = get_args_parser().parse_args(arguments)
    check_arguments(args)
    report = []
    sources = find_sources(args, report)
    parts = parts_folder(args, sources)
    data = {}
    for split, source in sources.items():
        images, names = load_pictures(split, source, args, parts, report)
        data[f"{split}_images"], data[f"{split}_image_names"] = images, names
        data[f"{split}_references"] = [source.captions[name] for name in names]
    encode_splits(data, list(sources), args, report)
    save_contact_sheet(args.out.with_name(args.out.stem + "_sheet.png"), *sheet(data, list(sources)))
    del data["train_references"]  # raw text serves the metrics, and those never look at the training split
    save(data, args.out)
    report_path = args.out.with_name(args.out.stem + "_report.txt")
    with replacing(report_path) as unfinished:
        unfinished.write_text("\n".join(report) + "\n", encoding="utf-8")
    for finished in args.out.parent.glob(f".{args.out.name}.parts-*"):
        shutil.rmtree(finished)
    print("\n".join(line for line in report if not line.startswith("  ")))
    print(f"wrote {args.out}, {report_path.name} and {args.out.stem}_sheet.png")


def check_arguments(args):
    for flag, folder in (("--images", args.images), ("--val-images", args.val_images)):
        if folder and not folder.is_dir():
            raise InputError(f"{flag} {folder}: there is no such folder")
    if bool(args.train_list) != bool(args.val_list) or (args.test_list and not args.train_list):
        raise InputError("--train-list and --val-list go together; give both, or --val-fraction")
    if args.val_images and not args.val_captions:
        raise InputError("--val-images needs --val-captions")
    ways = {"lists": args.train_list, "--val-captions": args.val_captions, "--val-fraction": args.val_fraction}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other: both choose the pictures that validate")
    if not 32 <= args.size <= 1024:
        raise InputError("--size must be at least 32 and at most 1024")
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise InputError("--val-fraction must lie between 0 and 1")


# ------------------------------------------------------------------------------------ the splits


def find_sources(args, report):
    """The splits, a dict: "train", "val" and perhaps "test" -> :class:`Source`."""
    captions, own_splits = read_captions(args.captions, report)
    if args.val_captions:
        val_captions, _ = read_captions(args.val_captions, report, "--val-captions")
        folders = {"train": args.images, "val": args.val_images or args.images}
        return {
            split: Source(folders[split], list(texts), texts)
            for split, texts in (("train", captions), ("val", val_captions))
        }
    if args.train_list:
        splits = read_lists(args, captions, report)
    elif own_splits and args.val_fraction is None:
        splits = {
            split: [name for name in captions if own_splits[name] == split]
            for split in ("train", "val", "test")
            if split in own_splits.values() or split != "test"
        }
    else:
        names = sorted(captions)
        random.Random(0).shuffle(names)
        count = max(1, round(len(names) * (args.val_fraction or 0.1)))
        splits = {"train": sorted(names[count:]), "val": sorted(names[:count])}
    for split, names in splits.items():
        if not names:
            raise InputError(f"no pictures with captions are left for {split}")
    return {split: Source(args.images, names, captions) for split, names in splits.items()}


def read_lists(args, captions, report):
    """The names in the list files that have captions, a dict: split -> names."""
    splits, listed = {}, {}
    for split in ("train", "val", "test"):
        path = getattr(args, f"{split}_list")
        if path is None:
            continue
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--{split}-list {path} cannot be read: {error}") from error
        names = list(dict.fromkeys(names))
        add_list(report, f"{split}: pictures of the list without a caption", [n for n in names if n not in captions])
        splits[split] = [name for name in names if name in captions]
        both = [name for name in splits[split] if name in listed]
        if both:
            raise InputError(
                f"{len(both)} pictures are in both lists, {listed[both[0]]} and {split}: {both[0]} for one"
            )
        listed |= dict.fromkeys(splits[split], split)
    return splits


# ---------------------------------------------------------------------------------- the pictures


def parts_folder(args, sources):
    """The folder beside the file for what is not finished; another for every other set of pictures."""
    key = hashlib.sha256(str(args.size).encode())
    for split, source in sources.items():
        key.update("\0".join((split, str(source.folder.resolve()), *source.names)).encode())
    needed = 2 * sum(len(source.names) for source in sources.values()) * 3 * args.size**2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    parts = args.out.parent / f".{args.out.name}.parts-{key.hexdigest()[:12]}"
    free = shutil.disk_usage(args.out.parent).free
    if not parts.exists() and free < needed:
        raise RunFailed(f"{args.out.parent} has {free / 1e9:.1f} GB free, the build needs {needed / 1e9:.1f} GB")
    parts.mkdir(exist_ok=True)
    return parts


def load_pictures(split, source, args, parts, report):
    """Decode a split's pictures in parallel into a file, and map it: memory use is constant.

    After every part of 256 a line in a log says which pictures were kept and which failed, so that an
    interrupted build can go on. Returns: uint8 (M, 3, size, size), and the M names.
    """
    picture = (3, args.size, args.size)
    log, raw = parts / f"{split}.jsonl", parts / f"{split}.raw"
    lines = (
        [json.loads(line) for line in log.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        if log.exists()
        else []
    )
    kept, failed = [name for line in lines for name in line[0]], [text for line in lines for text in line[1]]
    done = len(kept) + len(failed)

    def submit(start):
        part = source.names[start : start + 256]
        return part, pool.map(lambda name: try_to_load(source.folder / name, args.size), part)

    with (
        ThreadPoolExecutor(args.workers) as pool,
        open(log, "w", encoding="utf-8") as file,
        open(raw, "r+b" if lines else "wb") as pixels,
        tqdm(total=len(source.names), initial=done, desc=f"{split} pictures", unit="") as bar,
    ):
        file.writelines(json.dumps(line) + "\n" for line in lines)
        pixels.seek(len(kept) * math.prod(picture))
        upcoming = submit(done)
        for start in range(done, len(source.names), 256):
            part, loaded = upcoming
            upcoming = submit(start + 256)  # while this part is written, the next one is decoded
            good, bad = [], []
            for name, (image, reason) in zip(part, loaded):
                if image is None:
                    bad.append(f"{name}: {reason}")
                else:
                    pixels.write(image.numpy())
                    good.append(name)
            kept += good
            failed += bad
            pixels.flush()  # before the log says that they are there
            file.write(json.dumps([good, bad]) + "\n")
            file.flush()
            bar.update(len(part))
    add_list(report, f"{split}: pictures that could not be used", failed)
    if not kept:
        shutil.rmtree(parts)
        raise InputError(f"none of the {len(source.names)} {split} pictures could be read; the first: {failed[0]}")
    report.append(f"{split}: {len(kept)} pictures of {args.size}x{args.size}")
    return torch.from_numpy(np.memmap(raw, dtype=np.uint8, mode="r+", shape=(len(kept), *picture))), kept


def sheet(data, splits, count=12):
    """Some pictures spread over the splits, and what a reader should see below them."""
    images, texts = [], []
    for split in splits:
        chosen = torch.linspace(0, len(data[f"{split}_images"]) - 1, count // len(splits)).long().unique()
        images += list(data[f"{split}_images"][chosen])
        texts += [f"{split}: {data[f'{split}_references'][index][0]}" for index in chosen.tolist()]
    return images, texts


# ------------------------------------------------------------------------------------- the words


def encode_splits(data, splits, args, report):
    """Add the vocabulary (of the training captions) and the encoded captions to the data."""
    train_texts = (text for texts in data["train_references"] for text in texts)
    tokens, counts = build_vocabulary(map(tokenize, train_texts), args.word_threshold)
    token_to_idx = {token: index for index, token in enumerate(tokens)}
    data["vocab"] = {"idx_to_token": tokens, "token_to_idx": token_to_idx}
    covered = sum(counts[token] for token in tokens)
    report.append(
        f"vocabulary: {len(tokens)} tokens; {len(tokens) - 4} of {len(counts)} words occur {args.word_threshold} "
        f"times, which covers {covered / max(1, counts.total()):.1%} of the text"
    )
    for split in splits:
        rows = [(image, text) for image, texts in enumerate(data[f"{split}_references"]) for text in texts]
        encoded, cut = [], 0
        for start in range(0, len(rows), 10_000):  # word lists of all captions would take ten times the text's memory
            words = [tokenize(text) for _, text in rows[start : start + 10_000]]
            cut += sum(len(caption) > args.max_length for caption in words)
            encoded.append(encode_captions(words, token_to_idx, args.max_length))
        data[f"{split}_captions"] = torch.cat(encoded)
        data[f"{split}_image_index"] = torch.tensor([image for image, _ in rows])
        report.append(f"{split}: {len(rows)} captions, {cut} cut after {args.max_length} words")


if __name__ == "__main__":
    run_command(main)
