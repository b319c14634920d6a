"""Going on from a checkpoint: with the same run (--resume), or with another one (--init)."""

from pathlib import Path

from . import distributed
from .checkpoint import load_checkpoint
from .errors import InputError

# flags that may change when a run goes on; the encoder's weights are those in the checkpoint
FREE_TO_CHANGE = {"epochs", "out", "resume", "device", "precision", "quiet", "save_every", "patience", "data"}
FREE_TO_CHANGE |= {"download", "dry_run", "encoder_weights", "init"}


def find_start(last, args):
    """What a run begins with: a checkpoint's path, its dict, and whether it is resumed; or None, None, False.

    A bare --resume before there is a checkpoint starts from the beginning, so that one command can be given again
    and again. Args: last, the path that a bare --resume means.
    """
    if args.resume is True and not last.exists():
        print(f"{last} is not there yet: starting from the beginning", flush=True)
    elif args.resume:
        path = last if args.resume is True else Path(args.resume)
        checkpoint = load_checkpoint(path)
        if checkpoint["training"] is None:
            raise InputError(f"{path} holds no training state; resume from the file that ends in _last.pt")
        return path, checkpoint, True
    if args.init:
        return Path(args.init), load_checkpoint(args.init), False
    return None, None, False


def check_settings(checkpoint, path, args, stored_size):
    """Raise InputError if a run would not go on as it began. Args: stored_size, of the data's pictures."""
    before = checkpoint["image_size"]
    if before != stored_size:
        raise InputError(f"{path} is of pictures of {before} pixels, these have {stored_size}")
    for name, value in vars(args).items():
        before = checkpoint["settings"].get(name, value)
        if name not in FREE_TO_CHANGE and before != value:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{path} was trained with {flag} {before}, not {value}; leave it as it was to resume, "
                f"or begin another run from it: --init {path}"
            )
    before = checkpoint["settings"].get("epochs", args.epochs)
    if before != args.epochs:
        distributed.say(f"--epochs was {before} and is {args.epochs}: the learning rate's schedule is stretched to it")


def resume(trainer, checkpoint, path):
    """Bring a trainer to where a checkpoint's was."""
    try:
        random_numbers_go_on = trainer.load_state_dict(checkpoint["training"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: its training state doesn't fit its weights ({error})") from error
    if not random_numbers_go_on:
        distributed.say(f"{path} is of another number of processes: the run goes on, but not bit for bit the same")


def load_weights(checkpoint, path, captioner):
    """Take a captioner's weights, those of its encoder included, from a checkpoint's dict."""
    if checkpoint["cell"] != captioner.cell_type or checkpoint["idx_to_token"] != captioner.idx_to_word:
        raise InputError(f"{path} was trained with another cell or vocabulary; it can't be used here")
    if checkpoint["encoder"] != captioner.image_encoder.name:
        raise InputError(
            f"{path} was trained with --encoder {checkpoint['encoder']}, not {captioner.image_encoder.name}"
        )
    try:
        captioner.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise InputError(f"{path} does not fit these settings ({str(error).splitlines()[-1].strip()})") from error
