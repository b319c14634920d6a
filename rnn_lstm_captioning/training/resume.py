"""Continue the run of a checkpoint (--resume)."""

from pathlib import Path

from ..errors import InputError
from ..files import same_file
from ..model.checkpoint import Checkpoint
from . import distributed
from .run_folder import RunFolder
from .trainer import Trainer

# settings that may change when a run is resumed; the encoder's weights are those in the checkpoint
FREE_TO_CHANGE = {"epochs", "precision", "quiet", "save_every", "patience", "data", "dry_run", "encoder_weights"}
FREE_TO_CHANGE |= {"own_cell"}


def check_settings(checkpoint: Checkpoint, path: Path, settings: dict, stored_size: int) -> None:
    """Raise InputError if a resumed run would not continue as it began.

    Args: settings of the resumed run, with those of its captioner; stored_size of the data, in pixels.
    """
    if checkpoint.stored_size != stored_size:
        raise InputError(
            f"{path} was trained on images of {checkpoint.stored_size} pixels, these have {stored_size} pixels"
        )
    for name, value in settings.items():
        before = checkpoint.settings.get(name, value)
        if name in FREE_TO_CHANGE or before == value:
            continue
        other = f"to begin a new run with its weights, use --init {path}"
        if name == "contents":
            raise InputError(f"{path} was trained on other data than {settings['data']} holds now: {other}")
        flag = "--" + name.replace("_", "-")
        if isinstance(before, bool):
            with_it = "with" if before else "without"
            raise InputError(f"{path} was trained {with_it} {flag}: to resume, use it {with_it} {flag}; {other}")
        raise InputError(
            f"{path} was trained with {flag} {before}, not {value}: to resume, use {flag} {before}; {other}"
        )


def resume(trainer: Trainer, checkpoint: Checkpoint, path: Path, folder: RunFolder) -> bool:
    """Load the training state of a checkpoint into a trainer.

    Returns: whether the run will be the same bit for bit; with another number of processes it will not be.
    Raises: InputError if the checkpoint is damaged, or its run is finished.
    """
    if checkpoint.training is None:
        raise InputError(f"{path} holds no training state; resume from the file that ends in _last.pt")
    try:
        same = trainer.load_state_dict(checkpoint.training)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: its training state doesn't fit its weights ({error})") from error
    folder.saved = same_file(path, folder.last)
    if not distributed.from_rank_0(lambda: same_file(path, folder.last) and folder.best.exists()):
        trainer.best = None  # this folder has no best checkpoint: the next epoch writes the first one
        if trainer.step >= trainer.total_steps and trainer.is_evaluated():
            raise InputError(f"the run of {path} is finished; to continue it, give more --epochs")
    if trainer.history and distributed.rank() == 0:
        folder.write_history(trainer.history)
    return same
