"""Train a captioner: train_rnn.py, train_lstm.py, train_lstm_attention.py, and the command train for every cell."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..cells import CELLS
from ..data.caption_file import COCO_BYTES, COCO_PATH, CaptionData, download, load_captions
from ..errors import InputError, RunFailed
from ..evaluation.captions import default_device
from ..evaluation.metrics import can_score
from ..model.captioner import IMAGE_INPUTS, IMAGE_NORMS, CaptioningRNN, ModelSettings, build_captioner
from ..model.checkpoint import Checkpoint, load_checkpoint, load_weights
from ..training import distributed
from ..training.batches import Pairs
from ..training.features import FeaturePass, prepare_training, references_of
from ..training.resume import check_settings, resume
from ..training.run_folder import RunFolder
from ..training.self_critical import SelfCritical
from ..training.settings import BATCHINGS, OPTIMIZERS, PRECISIONS, SCHEDULES, DataSettings, TrainingSettings
from ..training.trainer import Objective, Trainer, caption_loss
from .common import ArgumentParser, device, non_negative, positive, probability, say, script_for


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
        "--batch-size", type=positive(int), default=256, metavar="N", help="in captions (%(default)s)"
    )
    training.add_argument(
        "--batching", choices=BATCHINGS, default="padded", help="length: captions of one length (%(default)s)"
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
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: in torch.autocast (%(default)s)"
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


class OwnCell(NamedTuple):
    """The cell to train, and the learner's file with its functions, if there is one."""

    name: str
    file: Path | None


def main(arguments: Sequence[str] | None = None, cell: str | None = None) -> None:
    """Train a captioner as the command line says. Args: cell, of a script that trains this cell only."""
    args = get_args_parser(cell).parse_args(arguments)
    chosen = choose_cell(args.cell, cell)
    if args.self_critical and not (args.init or args.resume):
        raise InputError("--self-critical improves a trained captioner: name its checkpoint with --init")
    if args.deterministic:  # on a CPU, it always is
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with distributed.process_group(args.device or default_device()) as used_device:
        train(args, chosen, used_device)


def choose_cell(text: str | None, cell: str | None) -> OwnCell:
    """What --cell names, in a script for one cell or in the command train."""
    if text is None:
        return OwnCell(cell or "lstm", None)
    if text in CELLS:
        if cell not in (None, text):
            raise InputError(f"this script trains the {cell}; use {script_for('train', text)}")
        return OwnCell(text, None)
    from ..classroom.own_cell import find_cell  # imported here: few runs need the checker

    file, _, name = text.rpartition(":")
    if file and name in CELLS:
        if cell not in (None, name):
            raise InputError(f"this script trains the {cell}; use {script_for('train', name, Path(file))}")
        return OwnCell(name, Path(file))
    return OwnCell(cell or find_cell(Path(text)), Path(text))


def train(args: Namespace, chosen: OwnCell, used_device: str) -> None:
    """Train a captioner in this process, one of those that train together."""
    torch.manual_seed(args.seed)
    out = args.out / "dry-run" if args.dry_run else args.out
    out.mkdir(parents=True, exist_ok=True)  # find an error now, not after hours of training
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out} can't be written to")
    data = choose_data(args)
    stored_size = data.splits["train"].images.shape[-1]
    settings = settings_from(args, data.source)
    model_settings = model_settings_from(args, chosen.name, stored_size)
    folder = RunFolder(out, chosen.name, data.source, stored_size, run_settings(settings, chosen))
    start = distributed.from_rank_0(lambda: find_start(folder.last, args))
    captioner = make_captioner(model_settings, settings.data, data, start, used_device, not settings.training.quiet)
    if start and start.resumed:
        check_settings(start.checkpoint, start.path, asdict(model_settings) | folder.settings, stored_size)
        before = start.checkpoint.settings.get("epochs", settings.training.epochs)
        if before != settings.training.epochs:
            say(f"--epochs was {before}, now {settings.training.epochs}: the learning rate's schedule is stretched")
    if chosen.file:
        use_functions_in(chosen.file, captioner, args.unchecked)
    feature_pass = FeaturePass(
        precision=settings.training.precision,
        cache=out if args.dry_run else None,
        progress=not settings.training.quiet,
    )
    pairs = prepare_training(
        captioner, data, settings.data, feature_pass, together=args.self_critical, new=start is None
    )
    objective = make_objective(settings.training, pairs[0], data)
    trainer = Trainer(captioner, *pairs, settings.training, objective=objective, save=folder.save, on_epoch=print_epoch)
    distributed.seed_per_rank(args.seed)
    if start and start.resumed:
        if not resume(trainer, start.checkpoint, start.path, folder):
            say(f"{start.path} was written by another number of processes: the run is not the same bit for bit")
    else:
        renamed = folder.keep_earlier_run()
        if renamed:
            say(f"the files of an earlier run are now {renamed} (--resume would have continued it)")
    run(trainer, folder)


def run(trainer: Trainer, folder: RunFolder) -> None:
    """Train to the end, and say what to do next. Raises: RunFailed or KeyboardInterrupt if it ends earlier."""
    last, best = folder.last, folder.best
    try:
        finished = trainer.run()
    except (RunFailed, OSError) as error:  # after RunFailed, --resume would fail in the same way
        start = best if best.exists() else last
        remedy = f"--init {start} begins another run" if isinstance(error, RunFailed) else "--resume continues"
        rest = f"{last} is as it was last saved: {remedy}" if folder.saved else "nothing was saved"
        raise RunFailed(f"{error}; {rest}") from error
    if not finished:
        say(f"saved: {last} after step {trainer.step}; the same command with --resume continues")
        raise KeyboardInterrupt
    assert trainer.best is not None  # there was at least one epoch
    row = trainer.best
    score_text = f", CIDEr {row['val_cider']:.1f}" if "val_cider" in row else ""
    say(f"best: {best}, epoch {row['epoch']}: {row['val_loss_per_word']:.3f} nats per word{score_text}")
    say(f"next: {script_for('test', folder.cell)} --checkpoint {best} --image PHOTO")


def print_epoch(trainer: Trainer) -> None:
    """Print one line about the last epoch."""
    row = trainer.history[-1]
    score_text = f", CIDEr {row['val_cider']:.1f}" if "val_cider" in row else ""
    say(
        f"epoch {row['epoch']}/{trainer.settings.epochs}: train {row['train_loss']:.3f}, val {row['val_loss']:.3f} "
        f"nats per caption; val {row['val_loss_per_word']:.3f} nats per word, perplexity {row['val_perplexity']:.2f}"
        f"{score_text}; {trainer.captions_per_second:.0f} captions/s, {trainer.seconds:.0f} s"
    )


# ------------------------------------------------------------------------ from flags to settings


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


def run_settings(settings: Settings, chosen: OwnCell) -> dict:
    """The settings of a run as plain values, for its checkpoints."""
    own = {"own_cell": str(chosen.file)} if chosen.file else {}
    return asdict(settings.data) | asdict(settings.training) | own


# ------------------------------------------------------------------------------ the parts of a run


class Start(NamedTuple):
    """The checkpoint that a run begins with, and whether it continues the checkpoint's run."""

    path: Path
    checkpoint: Checkpoint
    resumed: bool


def find_start(last: Path, args: Namespace) -> Start | None:
    """What --resume or --init names; None for a new run. If there is no checkpoint yet, --resume without FILE begins a
    new run, so that the same command can be repeated."""
    if args.resume is True and not last.exists():
        say(f"{last} does not exist yet: starting from the beginning")
    elif args.resume:
        path = last if args.resume is True else Path(args.resume)
        return Start(path, load_checkpoint(path), True)
    if args.init:
        return Start(args.init, load_checkpoint(args.init), False)
    return None


def choose_data(args: Namespace) -> CaptionData:
    """Load the data that the flags name, or coco.pt if it exists, or the scenes, and say which."""
    if args.download and args.data:
        raise InputError(f"--download fetches {COCO_PATH} and trains on it; leave out --data {args.data}")
    if args.download and distributed.world_size() > 1:
        raise InputError("--download is for one process: run the script once without torchrun, perhaps as --dry-run")
    if args.download:
        with tqdm(total=COCO_BYTES, unit="B", unit_scale=True, desc="coco.pt", disable=args.quiet) as bar:
            download(progress=bar.update)
    source = args.data or distributed.from_rank_0(lambda: str(COCO_PATH) if COCO_PATH.exists() else "scenes")
    hint = "; --download fetches coco.pt, --data FILE takes your own" if source == "scenes" and not args.data else ""
    say(f"data: {'the built-in scenes' if source == 'scenes' else source}{hint}")
    data = load_captions(source)
    captions = data.splits["train"].captions
    summary = (data.idx_to_word, tuple(data.splits["train"].images.shape), tuple(captions.shape), int(captions.sum()))
    if any(other != summary for other in distributed.all_gather(summary)):
        raise InputError(f"{source} is not the same file on all machines")
    if args.dry_run:
        data.splits = {name: split.first(4 * args.batch_size) for name, split in data.splits.items()}
    return data


def make_captioner(
    settings: ModelSettings,
    data_settings: DataSettings,
    data: CaptionData,
    start: Start | None,
    used_device: str,
    verbose: bool,
) -> CaptioningRNN:
    """The captioner on its device, new or with the weights of a checkpoint."""
    weights = "none" if start else data_settings.encoder_weights
    captioner = build_captioner(settings, data.word_to_idx, weights, verbose).to(used_device)
    if start:
        load_weights(start.checkpoint, start.path, captioner)
    trained = sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    use = "trained too" if settings.finetune_encoder else "frozen"
    say(
        f"model: {settings.cell}, {settings.encoder} (weights: {'checkpoint' if start else weights}; {use}), "
        f"{len(data.idx_to_word)} words, {trained:,} parameters to train"
    )
    return captioner


def use_functions_in(file: Path, captioner: CaptioningRNN, unchecked: bool) -> None:
    """Check a learner's functions, and train with them."""
    from ..classroom.own_cell import check_own_cell, use_own_cell

    if not unchecked:
        distributed.from_rank_0(lambda: check_own_cell(file, captioner.cell_type))
    use_own_cell(captioner, file)
    say(f"cell: the functions in {file}, {'not checked' if unchecked else 'right by the checker'}")


def make_objective(settings: TrainingSettings, train: Pairs, data: CaptionData) -> Objective:
    """What is minimised: the loss of the training captions, or minus the reward of sampled captions."""
    if not settings.self_critical:
        return caption_loss
    references = references_of(data.splits["train"], data)
    if not can_score(references):
        raise InputError(f"{data.source} has training images without a caption with which samples can be compared")
    if train.image_index.bincount().max() < 2:
        raise InputError(f"--self-critical samples as many captions as an image has, and {data.source} has one of each")
    return SelfCritical(references, max_length=train.captions.shape[1] - 1)
