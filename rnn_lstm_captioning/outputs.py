"""What a training run writes: checkpoints, a log, a curve, and a line for every epoch."""

import csv

from . import distributed
from .checkpoint import save_checkpoint
from .errors import InputError
from .storage import replacing
from .visualize import save_loss_curve


class Outputs:
    """The files of a run in --out, which the first process writes."""

    def __init__(self, cell, data, args):
        self.stem, self.title, self.source = args.out / cell, f"{cell}, {data.source}", data.source
        self.last, self.best = self.path("last.pt"), self.path("best.pt")
        self.stored_size = data.splits["train"].images.shape[-1]
        self.args = args
        self.saved = False  # whether there is a checkpoint of this run

    def path(self, name):
        return self.stem.with_name(f"{self.stem.name}_{name}")

    def save(self, which, trainer):
        """Write the "last" or the "best" checkpoint; after an epoch, with the last, the log and the curve."""
        state = trainer.state_dict() if which == "last" else None  # takes all processes
        if distributed.rank() > 0:
            return
        settings = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in vars(self.args).items()}
        save_checkpoint(self.path(f"{which}.pt"), trainer.captioner, self.stored_size, settings, self.source, state)
        self.saved = self.saved or which == "last"
        if which == "last" and trainer.history and trainer.step == trainer.history[-1]["step"]:
            self.write_history(trainer.history)
            print_epoch(trainer, self.args.epochs)

    def write_history(self, history):
        write_log(self.path("log.csv"), history)
        save_loss_curve(self.path("loss.png"), history, self.title)

    def keep_those_before(self):
        """Give the files of an earlier run another name, *_before*, so that this one does not overwrite them."""
        files = [self.path(name) for name in ("last.pt", "best.pt", "log.csv", "loss.png")]
        if distributed.rank() > 0 or not self.last.exists():
            return
        for file in files:
            if file.exists():
                file.replace(file.with_stem(f"{file.stem}_before"))
        name = f"{self.stem}_*_before"
        print(f"the files of an earlier run are now {name} (--resume would have gone on with it)", flush=True)

    def go_on(self, trainer, path):
        """Take up a run where the checkpoint at ``path`` left it. Raises: InputError if it is finished."""
        self.saved = path == self.last
        if not distributed.from_first(lambda: path.parent == self.args.out and self.best.exists()):
            trainer.best = None  # it lies in another folder: the next epoch is the best one here
            if trainer.step >= trainer.total_steps and trainer.is_evaluated():
                raise InputError(f"{path} is of a run that is finished; --epochs above {self.args.epochs} goes on")
        if trainer.history and distributed.rank() == 0:
            self.write_history(trainer.history)


def write_log(path, history):
    """The history of a training run as CSV, one row per epoch."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        # a run that was begun by another version may have other columns in its first rows
        writer = csv.DictWriter(file, history[-1].keys(), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in history)


def print_epoch(trainer, epochs):
    row = trainer.history[-1]
    score_text = f", CIDEr {row['val_cider']:.1f}" if "val_cider" in row else ""
    print(
        f"epoch {row['epoch']}/{epochs}: train {row['train_loss']:.3f}, val {row['val_loss']:.3f} nats per caption; "
        f"val {row['val_loss_per_word']:.3f} nats per word, perplexity {row['val_perplexity']:.2f}"
        f"{score_text}; "
        f"{trainer.captions_per_second:.0f} captions/s, {trainer.seconds:.0f} s",
        flush=True,
    )
