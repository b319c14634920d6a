"""Train a captioner: train_rnn.py, train_lstm.py, train_lstm_attention.py, and the command train for every cell."""

import contextlib
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..data.caption_file import COCO_BYTES, COCO_PATH, CaptionData, download, load_captions
from ..errors import InputError, RunFailed
from ..evaluation.captions import default_device
from ..evaluation.metrics import can_score
from ..files import protecting, same_file
from ..model.captioner import CaptioningRNN, build_captioner
from ..model.checkpoint import Checkpoint, load_checkpoint, load_weights
from ..model.settings import ModelSettings
from ..storage import only_one
from ..training import distributed
from ..training.batches import Pairs
from ..training.compiling import compile_cell
from ..training.features import FeaturePass, prepare_training, references_of
from ..training.precision import choose_precision
from ..training.resume import check_settings, resume
from ..training.run_folder import RunFolder
from ..training.self_critical import SelfCritical
from ..training.settings import DataSettings, TrainingSettings
from ..training.trainer import Objective, Trainer, caption_loss
from .common import say, script_for, warn
from .flags import train_flags
from .train_settings import ChosenCell, choose_cell, model_settings_from, run_settings, settings_from


def main(arguments: Sequence[str] | None = None, cell: str | None = None) -> None:
    """Train a captioner as the command line says. Args: cell, of a script that trains this cell only."""
    args = train_flags(cell).parse_args(arguments)
    chosen = choose_cell(args.cell, cell)
    if args.init and args.resume not in (None, True):
        raise InputError("--init begins a new run and --resume FILE continues one: use one of them")
    if args.self_critical and not (args.init or args.resume):
        raise InputError("--self-critical improves a trained captioner: name its checkpoint with --init")
    if not args.finetune_encoder and (args.finetune_from or args.freeze_batchnorm or args.encoder_learning_rate):
        raise InputError("--finetune-from, --freeze-batchnorm and --encoder-learning-rate need --finetune-encoder")
    if args.deterministic:  # on a CPU, it always is
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with distributed.process_group(args.device or default_device()) as used_device, contextlib.ExitStack() as stack:
        check_agreement(args, chosen)
        out = args.out / "dry-run" if args.dry_run else args.out
        distributed.from_rank_0(lambda: claim(out, chosen.name, stack))
        stack.enter_context(protecting([args.data, args.encoder_weights, chosen.file]))
        train(args, chosen, out, used_device)


def contents_of(file: Path | None) -> bytes | None:
    """The bytes of a learner's file; None if there is none, which is noticed later."""
    return file.read_bytes() if file and file.is_file() else None


def claim(out: Path, cell: str, stack: contextlib.ExitStack) -> None:
    """Until the stack is closed, no other process can train this cell into this folder."""
    try:
        stack.enter_context(only_one(out / f".{cell}.lock", f"training the {cell} into {out}"))
    except OSError as error:
        raise InputError(f"--out {out} can't be written to: {error.strerror}") from error


def check_agreement(args: Namespace, chosen: ChosenCell) -> None:
    """Raise InputError if the processes that train together have different flags or functions.

    Paths may differ between machines: only rank 0 reads checkpoints and writes results, and the data are compared.
    """
    paths = ("data", "out", "init", "resume", "encoder_weights", "cell")
    mine = {k: v for k, v in vars(args).items() if k not in (*paths, "device", "quiet")}
    mine |= {name: bool(getattr(args, name)) for name in paths}
    mine["cell"] = (chosen.name, contents_of(chosen.file))
    for others in distributed.all_gather(mine):
        for name in mine:
            if others[name] != mine[name]:
                values = "" if name in paths else f" ({others[name]} and {mine[name]})"
                flag = "--" + name.replace("_", "-")
                text = f"the processes have different values of {flag}{values}: give all of them the same"
                raise distributed.everywhere(InputError(text))


def train(args: Namespace, chosen: ChosenCell, out: Path, used_device: str) -> None:
    """Train a captioner in this process, one of those that train together. Args: out, the folder of the run."""
    torch.manual_seed(args.seed)
    data = choose_data(args)
    stored_size = data.splits["train"].images.shape[-1]
    model_settings = model_settings_from(args, chosen.name, stored_size)
    start = distributed.from_rank_0(lambda: find_start(out / f"{chosen.name}_last.pt", args))
    precision = distributed.from_rank_0(lambda: find_precision(args, start, used_device))
    settings = settings_from(args, data.source, precision)
    folder = RunFolder(out, chosen.name, data.source, stored_size, run_settings(settings, chosen, data))
    if start and start.resumed:
        check_settings(start.checkpoint, start.path, asdict(model_settings) | folder.settings, stored_size)
        before = start.checkpoint.settings.get("epochs", settings.training.epochs)
        if before != settings.training.epochs:
            say(f"--epochs was {before}, is {settings.training.epochs}: the learning rate's schedule covers them all")
    captioner = make_captioner(model_settings, settings.data, data, start, used_device, not settings.training.quiet)
    if args.compile and chosen.file:
        raise InputError(f"--compile translates our own cells only: leave it out to train with {chosen.file}")
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
    if settings.training.compile:
        captions = trainer.train.batch(trainer.batches_of_epoch(0)[0], used_device).captions
        seconds = compile_cell(captioner, captions, precision)
        say(f"compile: {seconds:.0f} s for captions of {captions.shape[1] - 1} words; each other length takes as long")
    distributed.seed_per_rank(args.seed)
    if start and start.resumed:
        if not same_file(start.path, folder.last):  # the run goes on here, and the files here are of another one
            keep_earlier_run(folder)
        if not resume(trainer, start.checkpoint, start.path, folder):
            say(f"{start.path} was written by another number of processes: the run is not the same bit for bit")
    else:
        keep_earlier_run(folder)
    run(trainer, folder)


def keep_earlier_run(folder: RunFolder) -> None:
    """Rename the files of an earlier run in the folder, and say so."""
    renamed = folder.keep_earlier_run()
    if renamed:
        say(f"the files of an earlier run were renamed to {renamed}; use --resume to continue a run")


def run(trainer: Trainer, folder: RunFolder) -> None:
    """Train to the end, and say what to do next. Raises: RunFailed or KeyboardInterrupt if it ends earlier."""
    last, best = folder.last, folder.best
    try:
        finished = trainer.run()
    except (RunFailed, OSError) as error:  # after RunFailed, --resume would fail in the same way
        start = best if best.exists() else last
        remedy = f"--init {start} begins another run" if isinstance(error, RunFailed) else "--resume continues"
        saved = folder.saved and last.exists()
        rest = f"{last} is as it was last saved: {remedy}" if saved else "nothing was saved"
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


def find_precision(args: Namespace, start: Start | None, used_device: str) -> str:
    """The precision of a run, and why: what --precision says, or what the resumed run had, or what is faster here."""
    earlier = start.checkpoint.settings.get("precision") if start and start.resumed else None
    asked = earlier if args.precision == "auto" and earlier else args.precision
    precision, reason = choose_precision(asked, used_device, args.batch_size, args.hidden_dim)
    if asked == "auto":
        say(f"precision: {precision}{f', because {reason}' if reason else ''}")
    elif reason:
        warn(f"warning: --precision {precision} is slow: {reason}; use --precision fp32")
    return precision


def choose_data(args: Namespace) -> CaptionData:
    """Load the data that the flags name, or coco.pt if it exists, or the scenes, and say which."""
    if args.download and args.data:
        raise InputError(f"--download fetches {COCO_PATH} and trains on it; leave out --data {args.data}")
    if args.download and distributed.world_size() > 1:
        raise InputError("--download needs a single process: run it first without torchrun, for example with --dry-run")
    if args.download:
        with tqdm(total=COCO_BYTES, unit="B", unit_scale=True, desc="coco.pt", disable=args.quiet) as bar:
            download(progress=bar.update)
    source = args.data or distributed.from_rank_0(lambda: str(COCO_PATH) if COCO_PATH.exists() else "scenes")
    hint = "; --download fetches coco.pt, --data FILE takes your own" if source == "scenes" and not args.data else ""
    say(f"data: {'the built-in scenes' if source == 'scenes' else source}{hint}")
    data = load_captions(source)
    if any(contents != data.contents for contents in distributed.all_gather(data.contents)):
        raise distributed.everywhere(InputError(f"{source} is not the same file on all machines"))
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
    say(f"cell: the functions in {file}, {'not checked' if unchecked else 'checked and right'}")


def make_objective(settings: TrainingSettings, train: Pairs, data: CaptionData) -> Objective:
    """What is minimised: the loss of the training captions, or minus the reward of sampled captions."""
    if not settings.self_critical:
        return caption_loss
    references = references_of(data.splits["train"], data)
    if not can_score(references):
        raise InputError(f"{data.source} has training images without a caption to compare samples with")
    if train.image_index.bincount().max() < 2:
        raise InputError(f"--self-critical needs at least two captions for some image; {data.source} has one for each")
    return SelfCritical(references, max_length=train.captions.shape[1] - 1)
