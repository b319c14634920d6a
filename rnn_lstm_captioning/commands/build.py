"""Make a caption file (.pt) from images and their captions.

If a build is interrupted, the same command continues it.
"""

from argparse import Namespace
from collections.abc import Sequence

import torch

from ..data.building import BuildSettings, build_caption_file, remove_parts
from ..evaluation.figures import save_contact_sheet
from ..files import check_unprotected, protecting, same_file
from ..storage import only_one, save, write_text
from .common import say
from .flags import build_flags


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
    settings = settings_from(build_flags().parse_args(arguments))
    with only_one(settings.out.with_name(f".{settings.out.name}.lock"), f"building {settings.out}"):
        inputs = [settings.captions, settings.val_captions, *(settings.split_lists or {}).values()]
        sheet = settings.sheet
        pictures = [sheet] if sheet.exists() and same_file(sheet.parent, settings.images) else []
        with protecting([*inputs, *pictures]):
            for path in (settings.out, sheet, settings.report):
                check_unprotected(path)  # now, and not after hours
            build(settings)


def build(settings: BuildSettings) -> None:
    """Write the caption file, a report and a sheet of sample images."""
    data, report = build_caption_file(settings)
    save_contact_sheet(settings.sheet, *sample_images(data))
    del data["train_references"]  # raw text is for the metrics, which don't use the training split
    save(data, settings.out)
    write_text(settings.report, "\n".join(report) + "\n")
    remove_parts(settings.out)
    for line in report:
        if not line.startswith("  "):
            say(line)
    say(f"wrote {settings.out}, {settings.report.name} and {settings.sheet.name}")


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
