"""Make a caption file (.pt) from a folder of photographs and a file of captions.

python -m rnn_lstm_captioning.data.build --images DIR --captions FILE --out FILE
"""

import csv
import json
import os
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..command import ArgumentParser, run_command
from ..errors import InputError
from ..storage import replacing
from ..vocabulary import build_vocabulary, encode_captions, tokenize
from .images import try_to_load


def get_args_parser():
    parser = ArgumentParser(
        prog="python -m rnn_lstm_captioning.data.build",
        description="Make a caption file (.pt) from a folder of photographs and a file of captions.",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of photographs")
    parser.add_argument(
        "--captions", type=Path, required=True, metavar="FILE", help="CSV with the columns image,caption, or COCO JSON"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the caption file to write (.pt)")
    parser.add_argument("--train-list", type=Path, metavar="FILE", help="names of the training pictures, one a line")
    parser.add_argument("--val-list", type=Path, metavar="FILE", help="names of the validation pictures, one a line")
    parser.add_argument(
        "--val-fraction", type=float, metavar="X", help="without lists: this part of the pictures validates (0.1)"
    )
    parser.add_argument("--size", type=int, default=112, help="side of the stored pictures in pixels (112)")
    parser.add_argument("--word-threshold", type=int, default=5, metavar="N", help="keep words seen N times (5)")
    parser.add_argument("--max-length", type=int, default=15, metavar="N", help="cut captions after N words (15)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="pictures decoded at the same time")
    return parser


def main(arguments=None):
    args = get_args_parser().parse_args(arguments)
    check_arguments(args)
    captions = read_captions(args.captions)
    report = [f"captions: {args.captions}, {sum(map(len, captions.values()))} for {len(captions)} pictures"]
    splits = split_names(captions, args, report)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=args.out.name) as folder:
        data = {}
        for split, names in splits.items():
            images, names = load_split(split, names, args, Path(folder), report)
            data[f"{split}_images"], data[f"{split}_image_names"] = images, names
            data[f"{split}_references"] = [captions[name] for name in names]
        encode_splits(data, args, report)
        with replacing(args.out) as unfinished:
            torch.save(data, unfinished)
    report_path = args.out.with_name(args.out.stem + "_report.txt")
    with replacing(report_path) as unfinished:
        unfinished.write_text("\n".join(report) + "\n", encoding="utf-8")
    print("\n".join(line for line in report if not line.startswith("  ")))
    print(f"wrote {args.out} and {report_path}")


def check_arguments(args):
    if not args.images.is_dir():
        raise InputError(f"--images {args.images}: there is no such folder")
    if bool(args.train_list) != bool(args.val_list):
        raise InputError("--train-list and --val-list go together; give both, or --val-fraction")
    if args.train_list and args.val_fraction is not None:
        raise InputError("--val-fraction and the lists exclude each other")
    for name, lowest in (("size", 32), ("word_threshold", 1), ("max_length", 1), ("workers", 1)):
        if getattr(args, name) < lowest:
            raise InputError(f"--{name.replace('_', '-')} must be at least {lowest}")
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise InputError("--val-fraction must lie between 0 and 1")


def read_captions(path):
    """A captions file as a dict, picture name -> list of raw captions, in the file's order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"--captions {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--captions {path} cannot be read as UTF-8 text: {error}") from error
    pairs = _read_coco(text, path) if path.suffix.lower() == ".json" else _read_csv(text, path)
    captions = {}
    for name, caption in pairs:
        captions.setdefault(name, []).append(caption)
    if not captions:
        raise InputError(f"--captions {path} holds no captions")
    return captions


def _read_csv(text, path):
    rows = csv.reader(text.splitlines(keepends=True))
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if header[:2] != ["image", "caption"]:
            raise InputError(f"--captions {path}: the first line must be image,caption")
        # an unquoted comma inside a caption: the rest of the row belongs to it
        return [(row[0].strip(), ",".join(row[1:]).strip()) for row in rows if len(row) >= 2]
    except csv.Error as error:
        raise InputError(f"--captions {path}, line {rows.line_num}: {error}") from error


def _read_coco(text, path):
    try:
        data = json.loads(text)
        names = {image["id"]: image["file_name"] for image in data["images"]}
        return [(names[note["image_id"]], note["caption"].strip()) for note in data["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--captions {path} is not a COCO captions JSON ({type(error).__name__}: {error})") from error


def split_names(captions, args, report):
    """The names of the training and validation pictures that have captions."""
    if args.train_list:
        splits = {}
        for split, path in (("train", args.train_list), ("val", args.val_list)):
            try:
                names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"--{split}-list {path} cannot be read: {error}") from error
            names = list(dict.fromkeys(names))
            without = [name for name in names if name not in captions]
            report_list(report, f"{split}: pictures of the list without a caption", without)
            splits[split] = [name for name in names if name in captions]
        both = set(splits["train"]) & set(splits["val"])
        if both:
            raise InputError(f"{len(both)} pictures are in both lists, {min(both)} for one")
    else:
        names = sorted(captions)
        random.Random(0).shuffle(names)
        count = max(1, round(len(names) * (args.val_fraction or 0.1)))
        splits = {"train": sorted(names[count:]), "val": sorted(names[:count])}
    for split, names in splits.items():
        if not names:
            raise InputError(f"no pictures with captions are left for {split}")
    return splits


def load_split(split, names, args, folder, report):
    """Decode a split's pictures in parallel into a file-backed tensor: memory use is constant."""
    shape = (len(names), 3, args.size, args.size)
    images = np.memmap(folder / f"{split}.raw", dtype=np.uint8, mode="w+", shape=shape)

    kept, failed = [], []
    with ThreadPoolExecutor(args.workers) as pool, tqdm(total=len(names), desc=f"{split} pictures", unit="") as bar:
        for start in range(0, len(names), 256):
            part = names[start : start + 256]
            loaded = pool.map(lambda name: try_to_load(args.images / name, args.size), part)
            for name, (image, reason) in zip(part, loaded):
                if image is None:
                    failed.append(f"{name}: {reason}")
                else:
                    images[len(kept)] = image.numpy()
                    kept.append(name)
            bar.update(len(part))
    report_list(report, f"{split}: pictures that could not be used", failed)
    if not kept:
        raise InputError(f"none of the {len(names)} {split} pictures could be read; the first: {failed[0]}")
    report.append(f"{split}: {len(kept)} pictures of {args.size}x{args.size}")
    return torch.from_numpy(images)[: len(kept)], kept


def encode_splits(data, args, report):
    """Add the vocabulary (of the training captions) and the encoded captions to the data."""
    words = {
        split: [[tokenize(text) for text in texts] for texts in data[f"{split}_references"]]
        for split in ("train", "val")
    }
    tokens, counts = build_vocabulary(
        (caption for captions in words["train"] for caption in captions), args.word_threshold
    )
    token_to_idx = {token: index for index, token in enumerate(tokens)}
    data["vocab"] = {"idx_to_token": tokens, "token_to_idx": token_to_idx}
    covered = sum(counts[token] for token in tokens)
    report.append(
        f"vocabulary: {len(tokens)} tokens; {len(tokens) - 4} of {len(counts)} words occur {args.word_threshold} "
        f"times, which covers {covered / max(1, counts.total()):.1%} of the text"
    )
    for split in ("train", "val"):
        rows = [(image, caption) for image, captions in enumerate(words[split]) for caption in captions if caption]
        if not rows:
            raise InputError(f"no {split} caption has a word in it")
        data[f"{split}_captions"] = encode_captions([caption for _, caption in rows], token_to_idx, args.max_length)
        data[f"{split}_image_index"] = torch.tensor([image for image, _ in rows])
        cut = sum(len(caption) > args.max_length for _, caption in rows)
        empty = sum(map(len, words[split])) - len(rows)
        report.append(
            f"{split}: {len(rows)} captions, {cut} cut after {args.max_length} words, {empty} empty ones left out"
        )
    del data["train_references"]  # raw text serves the metrics, and those never look at the training split


def report_list(report, title, lines):
    if lines:
        report.append(f"{title}: {len(lines)}")
        report.extend(f"  {line}" for line in lines)


if __name__ == "__main__":
    run_command(main)
