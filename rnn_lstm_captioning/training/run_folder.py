"""The files that a training run writes into its folder: checkpoints, a log and the loss curve."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.figures import save_loss_curve
from ..model.checkpoint import save_checkpoint
from ..storage import replacing
from . import distributed
from .trainer import Trainer

NAMES = ("last.pt", "best.pt", "log.csv", "loss.png")


class RunFolder:
    """The files ``<cell>_last.pt``, ``<cell>_best.pt``, ``<cell>_log.csv`` and ``<cell>_loss.png``, written by rank 0.

    Args: folder; cell, its name; data, the caption file's path or "scenes"; stored_size, the side in pixels of its
        images; settings of the run, plain values.
    Attributes: last and best, the paths of the checkpoints; saved, whether the last one is from this run.
    """

    def __init__(self, folder: Path, cell: str, data: str, stored_size: int, settings: dict) -> None:
        self.folder, self.cell, self.data, self.stored_size, self.settings = folder, cell, data, stored_size, settings
        self.last, self.best = self.path("last.pt"), self.path("best.pt")
        self.saved = False

    def path(self, name: str) -> Path:
        return self.folder / f"{self.cell}_{name}"

    def save(self, which: str, trainer: Trainer) -> None:
        """Write the "last" or the "best" checkpoint; after an epoch, "last" also writes the log and the loss curve."""
        state = trainer.state_dict() if which == "last" else None  # every process must call it
        if distributed.rank() > 0:
            return
        path = self.path(f"{which}.pt")
        save_checkpoint(path, trainer.captioner, self.stored_size, self.data, self.settings, state)
        self.saved = self.saved or which == "last"
        if which == "last" and trainer.history and trainer.step == trainer.history[-1]["step"]:
            self.write_history(trainer.history)

    def write_history(self, history: Sequence[dict]) -> None:
        """Write the log and the loss curve."""
        write_log(self.path("log.csv"), history)
        save_loss_curve(self.path("loss.png"), history, f"{self.cell}, {self.data}")

    def keep_earlier_run(self) -> str | None:
        """Rename the files of an earlier run, so that this run does not overwrite them: ``*_before``, or the first
        of ``*_before2``, ``*_before3``, ... that is free. Returns: a pattern for the new names, or None."""
        files = [path for path in map(self.path, NAMES) if path.exists()]
        if distributed.rank() > 0 or not files:
            return None
        number = 1
        while True:
            ending = f"_before{number if number > 1 else ''}"
            renamed = [path.with_stem(path.stem + ending) for path in map(self.path, NAMES)]
            if not any(path.exists() for path in renamed):
                break
            number += 1
        for path in files:
            path.rename(path.with_stem(path.stem + ending))
        return str(self.path(f"*{ending}"))


def write_log(path: Path, history: Sequence[dict]) -> None:
    """The history of a training run as CSV, one row per epoch."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        # the first rows may have other columns, if another version began the run
        writer = csv.DictWriter(file, history[-1].keys(), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in history)
