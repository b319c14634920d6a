"""The training loop, the same for every cell: it asks the captioner for the loss of a batch and updates the weights."""

import math
import signal
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from ..cells.layers import Affine
from ..data.vocabulary import NULL
from ..errors import RunFailed
from ..evaluation.captions import ImageCaptioner
from ..evaluation.metrics import can_score, cider
from ..model.captioner import CaptioningRNN, evaluating
from . import distributed
from .batches import Batch, Pairs
from .precision import autocast
from .settings import TrainingSettings

Objective = Callable[[CaptioningRNN, Batch], Tensor]


def batch_features(captioner: CaptioningRNN, batch: Batch) -> Tensor:
    """The features (m, C, grid_h, grid_w) of the images of a batch, each image once."""
    if batch.features is not None:
        return batch.features
    assert batch.images is not None
    return captioner.encode(batch.images)


def caption_loss(captioner: CaptioningRNN, batch: Batch) -> Tensor:
    """The usual objective: the mean loss per caption, in nats."""
    return captioner.loss(batch_features(captioner, batch), batch.captions, batch.image_of_caption)


def evaluate(
    captioner: CaptioningRNN, pairs: Pairs, batch_size: int = 256, precision: str = "fp32"
) -> tuple[float, float]:
    """The mean loss on all pairs; each process computes its share. Returns: nats per caption, nats per word."""
    total, device = 0.0, captioner.feature_mean.device
    with evaluating(captioner):
        for rows in distributed.shard(torch.arange(len(pairs))).split(batch_size):
            if len(rows):  # a process may have no share
                with autocast(device, precision):
                    total += caption_loss(captioner, pairs.batch(rows, device)).item() * len(rows)
    total = sum(distributed.all_gather(total))
    return total / len(pairs), total / pairs.num_words


def validation_cider(captioner: CaptioningRNN, val: Pairs, batch_size: int = 256, precision: str = "fp32") -> float:
    """CIDEr, in percent, of the greedy captions of all images; each process captions its share."""
    device, references = captioner.feature_mean.device, val.references
    assert references is not None
    image_captioner = ImageCaptioner(captioner, 0, str(device))
    with autocast(device, precision):
        if val.features is not None:
            captions = image_captioner.caption_features(distributed.shard(val.features), batch_size=batch_size)
        else:
            assert val.images is not None
            captions = image_captioner.caption_images(distributed.shard(val.images))
    texts = [text for part in distributed.all_gather([caption.text for caption in captions]) for text in part]
    return distributed.from_rank_0(lambda: cider(texts, references))


def learning_rate_factor(settings: TrainingSettings, step: int, total_steps: int) -> float:
    """The factor of the learning rate at a step: first a linear warm-up, then the schedule."""
    warmup = max(1, int(settings.warmup * total_steps)) if settings.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def selection_score(row: dict, best_by: str = "cider") -> float:
    """The best epoch has the highest score: CIDEr if it is wanted and was measured, else minus the validation loss."""
    return row["val_cider"] if best_by == "cider" and "val_cider" in row else -row["val_loss_per_word"]


class Trainer:
    """Trains a captioner. A run can stop after any step and continue from there.

    Args: captioner, on its device; train and val; settings; objective, what is minimised; save, called with "last" or
        "best" and this trainer whenever a checkpoint is due; on_epoch, called with this trainer after each epoch.
    Attributes: history, one row for each epoch; best, the row of the best epoch so far, as ``best_by`` in the
        settings says.
    """

    def __init__(
        self,
        captioner: CaptioningRNN,
        train: Pairs,
        val: Pairs,
        settings: TrainingSettings | None = None,
        *,
        objective: Objective = caption_loss,
        save: Callable[[str, "Trainer"], object] = lambda which, trainer: None,
        on_epoch: Callable[["Trainer"], object] = lambda trainer: None,
    ) -> None:
        self.captioner, self.train, self.val, self.objective = captioner, train, val, objective
        self.settings, self.save, self.on_epoch = settings or TrainingSettings(), save, on_epoch
        self.device = captioner.feature_mean.device
        self.parameters = [p for p in captioner.parameters() if p.requires_grad]
        self.optimizer = self._make_optimizer()
        self.steps_per_epoch = len(self.batches_of_epoch(0))
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.step = 0
        self.history: list[dict] = []
        self.best: dict | None = None
        self.norms, self.clipped = 0.0, 0  # in this epoch: the sum of the gradient norms, the number of clipped steps
        self.captions_per_second, self.seconds, self.epoch_start = math.nan, math.nan, time.monotonic()

    def _make_optimizer(self):
        settings = self.settings
        optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
        slower = set(self.captioner.image_encoder.parameters()) if settings.encoder_learning_rate else set()
        groups = [
            {
                "params": [p for p in self.parameters if (p in slower) == encoder and (p.dim() > 1) == matrix],
                "lr": settings.encoder_learning_rate if encoder else settings.learning_rate,
                "weight_decay": settings.weight_decay if matrix else 0.0,
            }
            for encoder in (False, True)
            for matrix in (True, False)
        ]
        # "peak" is the learning rate that the schedule multiplies; fused: one pass over memory
        used = [group | {"peak": group["lr"]} for group in groups if group["params"]]
        return optimizer(used, fused=self.device.type in ("cpu", "cuda"))

    def run(self) -> bool:
        """Train to the last epoch. Returns: False if a signal stopped it earlier; a checkpoint is then saved."""
        with _Interruption() as interruption:
            if not self.is_evaluated():
                self.finish_epoch()  # the run stopped after the last step of an epoch, before its evaluation
            while self.step < self.total_steps and not self.out_of_patience():
                if not self.train_one_epoch(interruption):
                    self.save("last", self)
                    return False
                self.finish_epoch()
                if interruption.noticed():
                    return self.step == self.total_steps
        return True

    def is_evaluated(self) -> bool:
        """Whether all finished epochs were evaluated."""
        return len(self.history) >= self.step // self.steps_per_epoch

    def out_of_patience(self) -> bool:
        """Whether the best epoch is at least ``patience`` epochs ago."""
        patience = self.settings.patience
        return bool(patience and self.best is not None and self.history[-1]["epoch"] - self.best["epoch"] >= patience)

    def train_one_epoch(self, interruption: "_Interruption") -> bool:
        """Train from the current step to the end of its epoch. Returns: False if a signal stopped it earlier."""
        settings = self.settings
        self.captioner.train()
        epoch, start = divmod(self.step, self.steps_per_epoch)
        batches = self.batches_of_epoch(epoch)[start:]
        self.epoch_start = time.monotonic()
        with tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", disable=settings.quiet, leave=False) as bar:
            for rows in bar:
                loss = self.train_one_batch(rows)
                self.show_progress(bar, loss, rows)
                if interruption.noticed():
                    return False
                if settings.save_every and self.step % settings.save_every == 0:
                    self.save("last", self)
        self.captions_per_second = sum(map(len, batches)) / (time.monotonic() - self.epoch_start)
        return True

    def train_one_batch(self, rows: Tensor) -> float:
        """One step of the optimizer. Returns: the loss of this process's share of the rows."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(settings, self.step, self.total_steps)
        mine = distributed.shard(rows)
        batch = self.train.batch(mine if len(mine) else rows[:1], self.device)
        with autocast(self.device, settings.precision):
            loss = self.objective(self.captioner, batch)
        self.optimizer.zero_grad()
        # with these weights, the gradients of all processes add up to that of the mean over all rows
        (loss * (len(mine) / len(rows))).backward()
        distributed.sum_gradients(self.parameters)
        norm = clip_grad_norm_(self.parameters, settings.clip or math.inf)
        if not torch.isfinite(loss + norm):
            raise RunFailed(
                f"step {self.step + 1}: the loss is {loss.item()}, the gradient's norm {norm.item()}; "
                "use a lower --learning-rate or --clip"
            )
        self.optimizer.step()
        self.step += 1
        self.norms += norm.item()
        self.clipped += bool(settings.clip) and norm.item() > settings.clip
        return loss.item()

    def batches_of_epoch(self, epoch: int) -> Sequence[Tensor]:
        """The row indices of an epoch's batches, the same at every call, so that an interrupted epoch can continue."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        batches = self.train.row_batches(settings.batch_size, settings.batching, generator)
        return batches[:4] if settings.dry_run else batches

    def show_progress(self, bar: tqdm, loss: float, rows: Tensor) -> None:
        """Show the loss, the speed and the remaining time on the progress bar."""
        words = (self.train.captions[rows, 1:] != NULL).sum().item() / len(rows)
        value = f"loss {loss:.2f}/caption, perplexity {math.exp(min(loss / words, 99)):.1f}/word"
        if self.settings.self_critical:
            value = f"CIDEr of sampled captions {-100 * loss:.1f}"
        rate = bar.format_dict["rate"] or 0
        left = (self.total_steps - self.step) / rate if rate else 0
        bar.set_postfix_str(
            f"{value}, {rate * self.settings.batch_size:.0f} captions/s, {left / 60:.0f} min left", refresh=False
        )

    def finish_epoch(self) -> None:
        """Evaluate both splits and save. The row has no times, so it is the same in every run with the same seed."""
        settings = self.settings
        distributed.broadcast_parameters(self.captioner)  # each process has its own BatchNorm statistics
        row: dict = {"epoch": self.step // self.steps_per_epoch, "step": self.step}
        for name, pairs in (("train", self.train.subset(len(self.val))), ("val", self.val)):
            per_caption, per_word = evaluate(self.captioner, pairs, settings.batch_size, settings.precision)
            row |= {f"{name}_loss": per_caption, f"{name}_loss_per_word": per_word}
            row[f"{name}_perplexity"] = math.exp(min(per_word, 99))
        row["gradient_norm"] = self.norms / self.steps_per_epoch
        row["clipped"] = self.clipped / self.steps_per_epoch
        self.norms, self.clipped = 0.0, 0
        if can_score(self.val.references):
            row["val_cider"] = validation_cider(self.captioner, self.val, settings.batch_size, settings.precision)
        self.seconds = time.monotonic() - self.epoch_start
        self.history.append(row)
        if self.best is None or selection_score(row, settings.best_by) > selection_score(self.best, settings.best_by):
            self.best = row
            self.save("best", self)
        self.save("last", self)
        self.on_epoch(self)

    # ------------------------------------------------------------------------- the state, for resuming

    def state_dict(self) -> dict:
        """What another trainer with the same settings needs to continue from here; every process must call it."""
        random_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "optimizer": self.optimizer.state_dict(),
            "affine": "(out, in)",  # until format 2, the affine maps' matrices were (in, out)
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "norms": self.norms,
            "clipped": self.clipped,
            "random_states": distributed.all_gather(random_state),
        }

    def load_state_dict(self, state: dict) -> bool:
        """Load a state. Returns: whether the random numbers continue too; with another number of processes they
        can't. Raises: ValueError, KeyError or TypeError if the state does not fit the parameters."""
        rows = [*state["history"], *([] if state["best"] is None else [state["best"]])]
        counts = [state["step"], state.get("norms", 0), state.get("clipped", 0)]
        if not (isinstance(state["step"], int) and all(0 <= n < 1e15 for n in counts) and all(map(_is_row, rows))):
            raise ValueError("the step or the history is not valid")
        groups = self.optimizer.state_dict()["param_groups"]  # as the settings say
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        turned = [] if "affine" in state else [m.weight for m in self.captioner.modules() if isinstance(m, Affine)]
        with torch.no_grad():
            for parameter in self.parameters:
                self._lay_out_state(parameter, any(parameter is other for other in turned))
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.norms, self.clipped = float(state.get("norms", 0)), int(state.get("clipped", 0))
        states = state.get("random_states") or [{"cpu": state["random_state"]}]  # older files have one state
        if len(states) != distributed.world_size():
            return False
        mine = states[distributed.rank()]
        torch.set_rng_state(mine["cpu"])
        if "cuda" in mine and self.device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda"], self.device)
        return True

    def _lay_out_state(self, parameter, turned):
        """Give the optimizer's state of a parameter the memory layout of the parameter, because the fused optimizer
        ignores strides. Args: turned, whether it is transposed. Raises: ValueError if it has another shape."""
        state = self.optimizer.state[parameter]
        if turned:
            state |= {name: value.T for name, value in state.items() if value.dim() == 2}
        shapes = {name: value.shape for name, value in state.items()}
        if shapes != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise ValueError("the optimizer's state has another shape")
        state["step"] = state["step"].float().clone()
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.empty_like(parameter).copy_(state[name])


def _is_row(row):
    wanted = {"epoch", "step", "train_loss", "val_loss", "train_loss_per_word", "val_loss_per_word", "val_perplexity"}
    if not isinstance(row, dict) or not wanted <= row.keys() or not all(map(str.isidentifier, row)):
        return False
    return all(isinstance(value, int | float) and abs(value) < 1e15 for value in row.values())


class _Interruption:
    """Notices Ctrl-C and SIGTERM, and lets the current step finish. A second Ctrl-C stops at once, but not under
    torchrun, which sends every process a second one itself."""

    def __enter__(self):
        self.signalled = False
        try:
            self.previous = {number: signal.signal(number, self._notice) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # this is not the main thread: no signal arrives here
            self.previous = {}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _notice(self, number, _):
        self.signalled = True
        if number == signal.SIGINT and distributed.world_size() == 1:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def noticed(self):
        """Whether any process got a signal; all processes ask at the same step and get the same answer."""
        return distributed.any_rank(self.signalled)
