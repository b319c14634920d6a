"""Build the dict of a caption file from a folder of images and a text file of captions.

Images are decoded in parallel into a folder of unfinished parts beside the result. So the memory use is constant, and
an interrupted build continues where it stopped.
"""

import glob
import hashlib
import json
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError, RunFailed
from ..files import read_text, same_file
from .images import try_to_load
from .readers import add_list, read_captions
from .vocabulary import build_vocabulary, encode_captions, tokenize


@dataclass(frozen=True)
class BuildSettings:
    """What a build reads and writes.

    One of these chooses the validation images: ``split_lists`` (split -> a file with one image name per line),
    ``val_captions`` (with ``val_images``, if these are in another folder), or ``val_fraction``. If none is given, the
    splits of a Karpathy JSON are used; without these, ``val_fraction`` is 0.1.
    Raises: InputError for a combination or a value that can't be used.
    """

    images: Path
    captions: Path
    out: Path
    val_images: Path | None = None
    val_captions: Path | None = None
    split_lists: dict[str, Path] | None = None
    val_fraction: float | None = None
    stored_size: int = 112  # the side of an image, in pixels
    word_threshold: int = 5
    max_length: int = 15
    workers: int = os.cpu_count() or 1

    @property
    def sheet(self) -> Path:
        """The figure of some images that is written beside the result."""
        return self.out.with_name(self.out.stem + "_sheet.png")

    @property
    def report(self) -> Path:
        """The text that is written beside the result: what was used, and what was not."""
        return self.out.with_name(self.out.stem + "_report.txt")

    def __post_init__(self) -> None:
        for flag, folder in (("--images", self.images), ("--val-images", self.val_images)):
            if folder and not folder.is_dir():
                raise InputError(f"{flag} {folder}: there is no such folder")
        lists = self.split_lists or {}
        if lists and not {"train", "val"} <= lists.keys():
            raise InputError("give both --train-list and --val-list, or use --val-fraction")
        if self.val_images and not self.val_captions:
            raise InputError("--val-images needs --val-captions")
        ways = {"lists": lists or None, "--val-captions": self.val_captions, "--val-fraction": self.val_fraction}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"use only one of {' and '.join(given)}: each chooses the validation images")
        if not 32 <= self.stored_size <= 1024:
            raise InputError("--size must be at least 32 and at most 1024")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise InputError("--val-fraction must lie between 0 and 1")
        if self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder; name a file, such as {self.out / 'captions.pt'}")
        if not self.out.parent.is_dir() and any(path.is_file() for path in self.out.parents):
            raise InputError(f"--out {self.out} can't be written: a part of its name is a file")
        if any(same_file(self.out, path) for path in (self.captions, self.val_captions) if path):
            raise InputError(f"--out {self.out} would overwrite the captions; choose another name")
        if self.out.suffix != ".pt":
            raise InputError(f"--out {self.out}: the name of a caption file must end in .pt")


class Source(NamedTuple):
    """Where the images and captions of a split come from."""

    folder: Path
    names: list[str]  # of image files in the folder
    captions: dict[str, list[str]]  # name -> raw captions


def build_caption_file(settings: BuildSettings) -> tuple[dict, list[str]]:
    """Read all images and captions.

    Returns: the dict of a caption file, with memory-mapped images and with ``train_references``, which the file does
    not need; and the lines of the report. When the dict is saved, call :func:`remove_parts`.
    Raises: InputError, RunFailed.
    """
    report: list[str] = []
    sources = find_sources(settings, report)
    parts = _parts_folder(settings, sources)
    data: dict = {}
    for split, source in sources.items():
        images, names = _load_split(split, source, settings, parts, report)
        data[f"{split}_images"], data[f"{split}_image_names"] = images, names
        data[f"{split}_references"] = [source.captions[name] for name in names]
    _encode_splits(data, list(sources), settings, report)
    return data, report


def remove_parts(out: Path) -> None:
    """Delete the unfinished parts of all builds of a file."""
    for finished in out.parent.glob(f".{glob.escape(out.name)}.parts-*"):
        shutil.rmtree(finished)


# ------------------------------------------------------------------------------------ the splits


def find_sources(settings: BuildSettings, report: list[str]) -> dict[str, Source]:
    """The splits: "train", "val" and perhaps "test" -> :class:`Source`."""
    captions, own_splits = read_captions(settings.captions, report)
    if settings.val_captions:
        val_captions, _ = read_captions(settings.val_captions, report, "--val-captions")
        folders = {"train": settings.images, "val": settings.val_images or settings.images}
        both = [name for name in captions if name in val_captions] if same_file(*folders.values()) else []
        if both:
            raise InputError(f"{len(both)} images are in both files of captions, such as {both[0]}")
        return {
            split: Source(folders[split], list(texts), texts)
            for split, texts in (("train", captions), ("val", val_captions))
        }
    if settings.split_lists:
        splits = _read_lists(settings.split_lists, captions, report)
    elif own_splits and settings.val_fraction is None:
        splits = {
            split: [name for name in captions if own_splits[name] == split]
            for split in ("train", "val", "test")
            if split in own_splits.values() or split != "test"
        }
    else:
        names = sorted(captions)
        random.Random(0).shuffle(names)
        num_val = max(1, round(len(names) * (settings.val_fraction or 0.1)))
        splits = {"train": sorted(names[num_val:]), "val": sorted(names[:num_val])}
    for split, names in splits.items():
        if not names:
            raise InputError(f"no images with captions are left for {split}")
    return {split: Source(settings.images, names, captions) for split, names in splits.items()}


def _read_lists(lists, captions, report):
    """The names in the list files, without those that have no caption: split -> names."""
    splits: dict[str, list[str]] = {}
    listed: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = lists.get(split)
        if path is None:
            continue
        try:
            names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"--{split}-list {path} cannot be read: {error}") from error
        names = list(dict.fromkeys(names))
        add_list(report, f"{split}: images of the list without a caption", [n for n in names if n not in captions])
        splits[split] = [name for name in names if name in captions]
        both = [name for name in splits[split] if name in listed]
        if both:
            raise InputError(f"{len(both)} images are in both lists, {listed[both[0]]} and {split}, such as {both[0]}")
        listed |= dict.fromkeys(splits[split], split)
    return splits


# ------------------------------------------------------------------------------------ the images


def _parts_folder(settings, sources):
    """The folder for unfinished parts: each set of images has its own for each stored size."""
    key = hashlib.sha256(str(settings.stored_size).encode())
    for split, source in sources.items():
        key.update(f"{split} {os.path.realpath(source.folder)}".encode(errors="surrogateescape"))
        for name in source.names:
            key.update(f"{name} {_state_of(source.folder / name)}".encode(errors="surrogateescape"))
    needed = 2 * sum(len(source.names) for source in sources.values()) * 3 * settings.stored_size**2
    folder = settings.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder / f".{settings.out.name}.parts-{key.hexdigest()[:12]}"
    free = shutil.disk_usage(folder).free
    if not parts.exists() and free < needed:
        raise RunFailed(f"{folder} has {free / 1e6:,.0f} MB free, the build needs {needed / 1e6:,.0f} MB")
    parts.mkdir(exist_ok=True)
    return parts


def _state_of(path):
    """What changes when another image takes the place of a file: its size and time."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def _load_split(split, source, settings, parts, report):
    """Decode the images of a split in parallel into a file, and map it into memory.

    After every 256 images, a line in a log says which were kept and which failed, so that an interrupted build can
    continue. Returns: uint8 (M, 3, size, size), and the M names.
    """
    size = settings.stored_size
    shape = (3, size, size)
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
        return part, pool.map(lambda name: try_to_load(source.folder / name, size), part)

    with (
        ThreadPoolExecutor(settings.workers) as pool,
        open(log, "w", encoding="utf-8") as file,
        open(raw, "r+b" if lines else "wb") as pixels,
        tqdm(total=len(source.names), initial=done, desc=f"{split} images", unit="") as bar,
    ):
        file.writelines(json.dumps(line) + "\n" for line in lines)
        pixels.seek(len(kept) * math.prod(shape))
        upcoming = submit(done)
        for start in range(done, len(source.names), 256):
            part, loaded = upcoming
            upcoming = submit(start + 256)  # decoded while this part is written
            good, bad = [], []
            for name, (image, reason) in zip(part, loaded):
                if image is None:
                    bad.append(f"{name}: {reason}")
                else:
                    pixels.write(image.numpy())
                    good.append(name)
            kept += good
            failed += bad
            pixels.flush()  # before the log says that the images are there
            file.write(json.dumps([good, bad]) + "\n")
            file.flush()
            bar.update(len(part))
    add_list(report, f"{split}: images that could not be used", failed)
    if not kept:
        shutil.rmtree(parts)
        raise InputError(f"none of the {len(source.names)} {split} images could be read; the first: {failed[0]}")
    report.append(f"{split}: {len(kept)} images of {size}x{size}")
    return torch.from_numpy(np.memmap(raw, dtype=np.uint8, mode="r+", shape=(len(kept), *shape))), kept


# ------------------------------------------------------------------------------------- the words


def _encode_splits(data, splits, settings, report):
    """Add the vocabulary (of the training captions) and the encoded captions to the data."""
    train_texts = (text for texts in data["train_references"] for text in texts)
    words, counts = build_vocabulary(map(tokenize, train_texts), settings.word_threshold)
    word_to_idx = {word: index for index, word in enumerate(words)}
    data["vocab"] = {"idx_to_token": words, "token_to_idx": word_to_idx}
    covered = sum(counts[word] for word in words)
    report.append(
        f"vocabulary: {len(words)} words and special words; {len(words) - 4} of {len(counts)} words occur at least "
        f"{settings.word_threshold} times, and cover {covered / max(1, counts.total()):.1%} of the text"
    )
    for split in splits:
        rows = [(image, text) for image, texts in enumerate(data[f"{split}_references"]) for text in texts]
        encoded, cut = [], 0
        for start in range(0, len(rows), 10_000):  # all word lists at once would take ten times the memory of the text
            captions = [tokenize(text) for _, text in rows[start : start + 10_000]]
            cut += sum(len(caption) > settings.max_length for caption in captions)
            encoded.append(encode_captions(captions, word_to_idx, settings.max_length))
        data[f"{split}_captions"] = torch.cat(encoded)
        data[f"{split}_image_index"] = torch.tensor([image for image, _ in rows])
        report.append(f"{split}: {len(rows)} captions, {cut} cut after {settings.max_length} words")
