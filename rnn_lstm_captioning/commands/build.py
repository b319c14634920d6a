"""Make a caption file (.pt) from images and their captions.

If a build is interrupted, the same command continues it.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.building import BuildSettings, build_caption_file, remove_parts
from ..evaluation.figures import save_contact_sheet
from ..storage import replacing, save
from .common import ArgumentParser, positive


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rnn_lstm_captioning build",
        description="Make a caption file (.pt) from images and their captions. Files of captions: CSV with the "
        "columns image,caption; COCO JSON; Karpathy's dataset_*.json; Flickr's .token.txt and results.csv.",
    )
    source = parser.add_argument_group("images and captions")
    source.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of images")
    source.add_argument("--captions", type=Path, required=True, metavar="FILE", help="their captions")
    source.add_argument("--val-images", type=Path, metavar="DIR", help="validation images, if in another folder")
    source.add_argument("--val-captions", type=Path, metavar="FILE", help="validation captions, if in another file")
    splits = parser.add_argument_group("splits (a Karpathy JSON has its own)")
    for split in ("train", "val", "test"):
        splits.add_argument(f"--{split}-list", type=Path, metavar="FILE", help="the names of its images, one per line")
    splits.add_argument(
        "--val-fraction", type=float, metavar="X", help="without lists: the fraction of the images for validation (0.1)"
    )
    text = parser.add_argument_group("what is stored")
    text.add_argument("--out", type=Path, required=True, metavar="FILE", help="the caption file to write (.pt)")
    text.add_argument("--size", type=int, default=112, help="the stored size: the side of an image in pixels (112)")
    text.add_argument(
        "--word-threshold",
        type=positive(int),
        default=5,
        metavar="N",
        help="keep words that occur at least N times in the training captions (5)",
    )
    text.add_argument(
        "--max-length", type=positive(int), default=15, metavar="N", help="cut captions after N words (15)"
    )
    parser.add_argument(
        "--workers", type=positive(int), default=os.cpu_count(), help="images decoded at the same time (%(default)s)"
    )
    return parser


def settings_from(args: Namespace) -> BuildSettings:
    """The flags as settings. Raises: InputError for flags that don't go together."""
    lists = {split: getattr(args, f"{split}_list") for split in ("train", "val", "test")}
    return BuildSettings(
        args.images,
        args.captions,
        args.out,
        val_images=args.val_images,
        val_captions=args.val_captions,
        split_lists={split: path for split, path in lists.items() if path} or None,
        val_fraction=args.val_fraction,
        stored_size=args.size,
        word_threshold=args.word_threshold,
        max_length=args.max_length,
        workers=args.workers,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    settings = settings_from(get_args_parser().parse_args(arguments))
    data, report = build_caption_file(settings)
    out = settings.out
    save_contact_sheet(out.with_name(out.stem + "_sheet.png"), *sample_images(data))
    del data["train_references"]  # raw text is for the metrics, which don't use the training split
    save(data, out)
    report_path = out.with_name(out.stem + "_report.txt")
    with replacing(report_path) as unfinished:
        unfinished.write_text("\n".join(report) + "\n", encoding="utf-8")
    remove_parts(out)
    print("\n".join(line for line in report if not line.startswith("  ")))
    print(f"wrote {out}, {report_path.name} and {out.stem}_sheet.png")


def sample_images(data: dict, count: int = 12) -> tuple[list[torch.Tensor], list[str]]:
    """Some images from all splits, and the text to write below them."""
    splits = [name.removesuffix("_images") for name in data if name.endswith("_images")]
    images: list[torch.Tensor] = []
    texts: list[str] = []
    for split in splits:
        chosen = torch.linspace(0, len(data[f"{split}_images"]) - 1, count // len(splits)).long().unique()
        images += list(data[f"{split}_images"][chosen])
        texts += [f"{split}: {data[f'{split}_references'][index][0]}" for index in chosen.tolist()]
    return images, texts
