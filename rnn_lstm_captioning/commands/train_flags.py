"""The flags of the train scripts, and the settings that they become."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ..cells import CELLS
from ..errors import InputError
from ..model.captioner import IMAGE_INPUTS, IMAGE_NORMS, ModelSettings
from ..training import distributed
from ..training.settings import BATCHINGS, OPTIMIZERS, PRECISIONS, SCHEDULES, DataSettings, TrainingSettings
from .common import ArgumentParser, device, non_negative, positive, probability, script_for


def get_args_parser(cell: str | None = None) -> ArgumentParser:
    """The flags. Args: cell, of a script that trains this cell only."""
    title = CELLS[cell].title + " captioner" if cell else "captioner"
    parser = ArgumentParser(description=f"Train the {title}. @FILE reads arguments from a file.")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        help="a caption file, or 'scenes'; default: datasets/coco.pt if it exists, else the scenes",
    )
    data.add_argument("--download", action="store_true", help="first download the course's coco.pt (378 MB)")
    data.add_argument("--num-train", type=positive(int), metavar="N", help="use the first N training captions only")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--cell",
        metavar="NAME|FILE",
        help=f"{', '.join(CELLS)}, or a Python file with your own functions, such as mine.py or mine.py:lstm",
    )
    model.add_argument("--unchecked", action="store_true", help="with --cell FILE: train without checking the file")
    model.add_argument("--encoder", default="regnet_x_400mf", metavar="NAME", help="a torchvision CNN (%(default)s)")
    model.add_argument(
        "--encoder-weights", metavar="imagenet|none|FILE", help="default: imagenet; for the scenes: none"
    )
    model.add_argument("--finetune-encoder", action="store_true", help="train the CNN too; slower")
    model.add_argument("--image-size", type=positive(int), metavar="PIXELS", help="fed to the CNN (the stored size)")
    model.add_argument(
        "--augment", action="store_true", help="random crops and mirroring; the CNN then runs in every step"
    )
    if cell is None or not CELLS[cell].uses_grid:
        model.add_argument(
            "--image-input", choices=IMAGE_INPUTS, default="h0", help="how the cell reads the image (%(default)s)"
        )
        model.add_argument(
            "--image-norm", choices=IMAGE_NORMS, default="none", help="normalise the projected image (%(default)s)"
        )
    model.add_argument("--hidden-dim", type=positive(int), default=512, metavar="H", help="hidden size (%(default)s)")
    model.add_argument(
        "--wordvec-dim", type=positive(int), default=256, metavar="D", help="size of a word vector (%(default)s)"
    )
    model.add_argument(
        "--dropout", type=probability, default=0.25, metavar="P", help="of word vectors and hidden states (%(default)s)"
    )
    model.add_argument(
        "--feature-dropout", type=probability, default=0.5, metavar="P", help="of features (%(default)s)"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive(int), default=60, help="(%(default)s)")
    training.add_argument(
        "--batch-size", type=positive(int), default=256, metavar="N", help="captions per batch (%(default)s)"
    )
    training.add_argument(
        "--batching", choices=BATCHINGS, default="padded", help="length: captions of one length only (%(default)s)"
    )
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="(%(default)s)")
    training.add_argument("--learning-rate", type=positive(float), default=1e-3, metavar="X", help="(%(default)s)")
    training.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate (%(default)s)")
    training.add_argument(
        "--warmup",
        type=probability,
        default=0.05,
        metavar="P",
        help="the fraction of all steps in which the learning rate rises to its value; 0: none (%(default)s)",
    )
    training.add_argument(
        "--clip",
        type=non_negative(float),
        default=5.0,
        metavar="X",
        help="largest gradient norm; 0: no limit (%(default)s)",
    )
    training.add_argument(
        "--weight-decay", type=non_negative(float), default=1e-2, metavar="X", help="of matrices (%(default)s)"
    )
    training.add_argument(
        "--patience",
        type=non_negative(int),
        default=0,
        metavar="N",
        help="stop N epochs after the best one; 0: never (%(default)s)",
    )
    training.add_argument(
        "--init", type=Path, metavar="FILE", help="begin a new run with the weights of this checkpoint"
    )
    training.add_argument(
        "--self-critical",
        action="store_true",
        help="with --init: raise the CIDEr of sampled captions; use a low --learning-rate",
    )
    training.add_argument("--seed", type=non_negative(int), default=0, help="of all random numbers (%(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda if there is a GPU")
    machine.add_argument(
        "--deterministic", action="store_true", help="on cuda: the same seed gives the same weights; slower"
    )
    machine.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: with torch.autocast (%(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, default=Path("cv"), metavar="DIR", help="the folder of the run (%(default)s)"
    )
    output.add_argument(
        "--save-every",
        type=non_negative(int),
        default=0,
        metavar="STEPS",
        help="save a checkpoint after every STEPS steps too",
    )
    output.add_argument(
        "--resume", nargs="?", const=True, metavar="FILE", help="continue the run of a checkpoint (OUT/CELL_last.pt)"
    )
    output.add_argument("--dry-run", action="store_true", help="one epoch of at most four batches, to try the settings")
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


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


def settings_from(args: Namespace, source: str) -> Settings:
    """The flags as settings. Args: source of the data, a path or "scenes"."""
    default_weights = "none" if source == "scenes" else "imagenet"
    data = DataSettings(source, args.num_train, args.augment, args.encoder_weights or default_weights)
    training = TrainingSettings(
        epochs=1 if args.dry_run else args.epochs,
        batch_size=args.batch_size,
        batching=args.batching,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        schedule=args.schedule,
        warmup=args.warmup,
        clip=args.clip,
        weight_decay=args.weight_decay,
        patience=args.patience,
        self_critical=args.self_critical,
        seed=args.seed,
        precision=args.precision,
        save_every=args.save_every,
        dry_run=args.dry_run,
        quiet=args.quiet or distributed.rank() > 0,
    )
    return Settings(data, training)


def model_settings_from(args: Namespace, cell: str, stored_size: int) -> ModelSettings:
    """The flags as the model's settings. Args: stored_size, of the data's images, in pixels."""
    image_size = args.image_size
    if args.augment:  # the classic recipe crops 224 pixels from images of 256
        image_size = image_size or stored_size * 7 // 8
        if image_size > stored_size:
            raise InputError(f"--augment can't crop {image_size} pixels from images of {stored_size}")
    return ModelSettings(
        cell=cell,
        encoder=args.encoder,
        finetune_encoder=args.finetune_encoder,
        image_size=image_size,
        image_input=getattr(args, "image_input", "h0"),
        image_norm=getattr(args, "image_norm", "none"),
        hidden_dim=args.hidden_dim,
        wordvec_dim=args.wordvec_dim,
        dropout=args.dropout,
        feature_dropout=args.feature_dropout,
    )


def run_settings(settings: Settings, chosen: ChosenCell) -> dict:
    """The settings of a run as plain values, for its checkpoints."""
    own = {"own_cell": str(chosen.file)} if chosen.file else {}
    return asdict(settings.data) | asdict(settings.training) | own
