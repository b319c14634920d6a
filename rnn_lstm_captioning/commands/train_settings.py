"""The settings that the flags of the train scripts become."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ..cells import CELLS
from ..data.caption_file import CaptionData
from ..errors import InputError
from ..model.settings import LARGEST_IMAGE, ModelSettings
from ..training import distributed
from ..training.settings import DataSettings, TrainingSettings
from .common import script_for


class ChosenCell(NamedTuple):
    """The cell to train, and the learner's file with its functions, if there is one."""

    name: str
    file: Path | None


def choose_cell(text: str | None, cell: str | None) -> ChosenCell:
    """What --cell names, in a script for one cell or in the command train."""
    if text is None:
        return ChosenCell(cell or "lstm", None)
    if text in CELLS:
        if cell not in (None, text):
            raise InputError(f"this script trains the {cell}; use {script_for('train', text)}")
        return ChosenCell(text, None)
    from ..classroom.own_cell import find_cell  # imported here: few runs need the checker

    file, _, name = text.rpartition(":")
    if file and name in CELLS:
        if cell not in (None, name):
            raise InputError(f"this script trains the {cell}; use {script_for('train', name, Path(file))}")
        return ChosenCell(name, Path(file))
    return ChosenCell(cell or find_cell(Path(text)), Path(text))


class Settings(NamedTuple):
    """What the flags say about data and training."""

    data: DataSettings
    training: TrainingSettings


def settings_from(args: Namespace, source: str, precision: str = "fp32") -> Settings:
    """The flags as settings. Args: source of the data, a path or "scenes"; precision, what --precision became."""
    default_weights = "none" if source == "scenes" else "imagenet"
    data = DataSettings(source, args.num_train, args.augment, args.encoder_weights or default_weights)
    training = TrainingSettings(
        epochs=1 if args.dry_run else args.epochs,
        batch_size=args.batch_size,
        batching=args.batching,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        encoder_learning_rate=args.encoder_learning_rate,
        schedule=args.schedule,
        warmup=args.warmup,
        clip=args.clip,
        weight_decay=args.weight_decay,
        best_by=args.best_by,
        patience=args.patience,
        self_critical=args.self_critical,
        seed=args.seed,
        precision=precision,
        compile=args.compile,
        save_every=args.save_every,
        dry_run=args.dry_run,
        quiet=args.quiet or distributed.rank() > 0,
    )
    return Settings(data, training)


def model_settings_from(args: Namespace, cell: str, stored_size: int) -> ModelSettings:
    """The flags as the model's settings. Args: stored_size, of the data's images, in pixels."""
    image_size = args.image_size
    if max(args.hidden_dim, args.wordvec_dim) > 2**16:
        raise InputError(f"--hidden-dim and --wordvec-dim can be at most {2**16}")
    if image_size and image_size > LARGEST_IMAGE:
        raise InputError(f"--image-size {image_size} is too large; it can be at most {LARGEST_IMAGE}")
    if args.augment:  # the classic recipe crops 224 pixels from images of 256
        image_size = image_size or stored_size * 7 // 8
    return ModelSettings(
        cell=cell,
        encoder=args.encoder,
        encoder_layer=args.encoder_layer,
        finetune_encoder=args.finetune_encoder,
        finetune_from=args.finetune_from,
        freeze_batchnorm=args.freeze_batchnorm,
        image_size=image_size,
        image_input=getattr(args, "image_input", "h0"),
        image_norm=getattr(args, "image_norm", "none"),
        hidden_dim=args.hidden_dim,
        wordvec_dim=args.wordvec_dim,
        dropout=args.dropout,
        feature_dropout=args.feature_dropout,
    )


def run_settings(settings: Settings, chosen: ChosenCell, data: CaptionData) -> dict:
    """The settings of a run as plain values, for its checkpoints."""
    own = {"own_cell": str(chosen.file)} if chosen.file else {}
    return asdict(settings.data) | asdict(settings.training) | own | {"contents": data.contents}
