"""The training loop. It knows nothing about which cell it trains."""

import math
import signal
import time

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from . import distributed
from .errors import RunFailed
from .pairs import evaluate
from .vocabulary import NULL


def learning_rate_factor(schedule, step, total_steps):
    """What the learning rate is multiplied with at a step: a short linear warm-up, then the schedule."""
    warmup = max(1, total_steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def merit(row):
    """What the best epoch has most of: CIDEr where it was measured, else a low validation loss."""
    return row.get("val_cider", -row["val_loss_per_word"])


class BatchLoss(nn.Module):
    """An objective's batch_loss as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, captioner, objective, device):
        super().__init__()
        self.captioner, self.objective, self.device = captioner, objective, device

    def forward(self, rows):
        return self.objective.batch_loss(self.captioner, rows, self.device)


class Trainer:
    """Trains a captioner, and can stop after any step and go on from there.

    Args: captioner; train and val, :class:`~rnn_lstm_captioning.pairs.Pairs`; settings, the parsed command
        line; save, called with "last" or "best" and this trainer whenever a checkpoint is due; autocast, a function
        that returns the context in which the loss is computed; score, a function that returns the
        CIDEr of the captions that the captioner now writes for val, or None: then the best epoch is
        the one with the lowest validation loss; objective, whose batch_loss is minimised (train's).
    """

    def __init__(self, captioner, train, val, settings, save, autocast, score=None, objective=None):
        self.captioner, self.train, self.val, self.objective = captioner, train, val, objective or train
        self.settings, self.save, self.autocast, self.score = settings, save, autocast, score
        optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
        self.parameters = [p for p in captioner.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in self.parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
        self.optimizer = optimizer(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            fused=self.parameters[0].device.type in ("cpu", "cuda"),  # one pass over memory
        )
        self.batch_loss = distributed.parallel(BatchLoss(captioner, self.objective, settings.device))
        self.steps_per_epoch = len(self.batches_of_epoch(0))
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step, self.history, self.best = 0, [], None  # best: its row of the history
        self.norms, self.clipped = 0.0, 0  # of this epoch: the sum of the gradients' norms, how many were clipped
        self.captions_per_second, self.seconds, self.epoch_start = math.nan, math.nan, time.monotonic()

    def run(self):
        """Train to the last epoch. Returns False if a signal ended it before; a checkpoint is saved either way."""
        with _Interruption() as interruption:
            if not self.is_evaluated():
                self.finish_epoch()  # what was resumed ended between an epoch's last step and its evaluation
            while self.step < self.total_steps and not self.out_of_patience():
                if not self.train_one_epoch(interruption):
                    self.save("last", self)
                    return False
                self.finish_epoch()
                if interruption.noticed():
                    return self.step == self.total_steps
        return True

    def is_evaluated(self):
        """Whether all epochs that are done were evaluated."""
        return len(self.history) >= self.step // self.steps_per_epoch

    def out_of_patience(self):
        """Whether the best epoch is too long ago."""
        patience = self.settings.patience
        return bool(patience and self.best) and self.history[-1]["epoch"] - self.best["epoch"] >= patience

    def train_one_epoch(self, interruption):
        """From the current step to the end of its epoch. Returns False if a signal came."""
        settings = self.settings
        self.captioner.train()
        epoch, start = divmod(self.step, self.steps_per_epoch)
        batches = self.batches_of_epoch(epoch)[start:]
        self.epoch_start = time.monotonic()
        with tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", disable=settings.quiet, leave=False) as bar:
            for rows in bar:
                loss = self.train_one_batch(rows)
                self.show(bar, loss, rows)
                if interruption.noticed():
                    return False
                if settings.save_every and self.step % settings.save_every == 0:
                    self.save("last", self)
        self.captions_per_second = sum(map(len, batches)) / (time.monotonic() - self.epoch_start)
        return True

    def train_one_batch(self, rows):
        """One step of the optimizer. Returns: the loss (of this process's share of the rows)."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(settings.schedule, self.step, self.total_steps)
            group["lr"] = settings.learning_rate * factor
        mine = distributed.share(rows)
        with self.autocast():
            loss = self.batch_loss(mine if len(mine) else rows[:1])
        self.optimizer.zero_grad()
        # the mean over the processes of what is weighted so is the mean over all rows, however many each has
        (loss * (len(mine) * distributed.count() / len(rows))).backward()
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

    def batches_of_epoch(self, epoch):
        """The rows of an epoch's batches, the same at every call: an interrupted epoch can go on."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        batches = self.train.batches(self.settings.batch_size, self.settings.batching, generator)
        return batches[:4] if self.settings.dry_run else batches

    def show(self, bar, loss, rows):
        words = (self.train.captions[rows, 1:] != NULL).sum().item() / len(rows)
        value = f"loss {loss:.2f}/caption, perplexity {math.exp(min(loss / words, 99)):.1f}/word"
        if self.objective is not self.train:
            value = f"CIDEr of drawn captions {-100 * loss:.1f}"
        rate = bar.format_dict["rate"]
        left = (self.total_steps - self.step) / rate if rate else 0
        bar.set_postfix_str(
            f"{value}, {(rate or 0) * self.settings.batch_size:.0f} captions/s, {left / 60:.0f} min to the end",
            refresh=False,
        )

    def finish_epoch(self):
        """Evaluate both splits, log, and save. The log's row says nothing of time: it is the same at every run."""
        settings = self.settings
        distributed.take_from_first(self.captioner)  # each process has its own BatchNorm statistics
        row = {"epoch": self.step // self.steps_per_epoch, "step": self.step}
        for name, pairs in (("train", self.train.sample(len(self.val))), ("val", self.val)):
            per_caption, per_word = evaluate(self.captioner, pairs, settings.batch_size, settings.device, self.autocast)
            row |= {f"{name}_loss": per_caption, f"{name}_loss_per_word": per_word}
            row[f"{name}_perplexity"] = math.exp(min(per_word, 99))
        row["gradient_norm"] = self.norms / self.steps_per_epoch
        row["clipped"] = self.clipped / self.steps_per_epoch
        self.norms, self.clipped = 0.0, 0
        if self.score:
            row["val_cider"] = self.score()
        self.seconds = time.monotonic() - self.epoch_start
        self.history.append(row)
        if self.best is None or merit(row) > merit(self.best):
            self.best = row
            self.save("best", self)
        self.save("last", self)

    def state_dict(self):
        """What other trainers with the same settings need to go on from here; every process must call it."""
        device = torch.device(self.settings.device)
        random_state = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(device)
        return {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "norms": self.norms,
            "clipped": self.clipped,
            "random_states": distributed.gather(random_state),
        }

    def lay_out_state(self, parameter):
        """Give the optimizer's state of a parameter the parameter's own layout; the fused optimizer looks at nothing
        before it writes. Raises: ValueError if it is of another shape."""
        state = self.optimizer.state[parameter]
        shapes = {name: value.shape for name, value in state.items()}
        if shapes != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise ValueError("the optimizer's state is of another shape")
        state["step"] = state["step"].float().clone()
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.empty_like(parameter).copy_(state[name])

    def load_state_dict(self, state):
        """Go on from a state. Returns: whether the random numbers go on too; they can't with another number of
        processes. Raises: ValueError, KeyError or TypeError if the state is not one of these parameters."""
        rows = [*state["history"], *([] if state["best"] is None else [state["best"]])]
        if not (isinstance(state["step"], int) and state["step"] >= 0 and all(map(_is_row, rows))):
            raise ValueError("the step or the history is not one")
        groups = self.optimizer.state_dict()["param_groups"]  # by the settings
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        with torch.no_grad():
            for parameter in self.parameters:
                self.lay_out_state(parameter)
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.norms, self.clipped = float(state.get("norms", 0)), int(state.get("clipped", 0))
        states = state.get("random_states") or [{"cpu": state["random_state"]}]  # before there were several processes
        if len(states) != distributed.count():
            return False
        torch.set_rng_state(states[distributed.rank()]["cpu"])
        if "cuda" in states[distributed.rank()] and torch.device(self.settings.device).type == "cuda":
            torch.cuda.set_rng_state(states[distributed.rank()]["cuda"], self.settings.device)
        return True


def _is_row(row):
    wanted = {"epoch", "step", "train_loss", "val_loss", "train_loss_per_word", "val_loss_per_word", "val_perplexity"}
    return isinstance(row, dict) and wanted <= row.keys() and all(isinstance(v, int | float) for v in row.values())


class _Interruption:
    """Notices Ctrl-C and SIGTERM and lets the step end. A second Ctrl-C acts at once, but not under torchrun,
    which passes on to every process what the terminal has already sent it."""

    def __enter__(self):
        self.signalled = False
        self.previous = {number: signal.signal(number, self._notice) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _notice(self, number, _):
        self.signalled = True
        if number == signal.SIGINT and distributed.count() == 1:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def noticed(self):
        """Whether a process was signalled; all of them must ask at the same step, and all get the same answer."""
        return distributed.any_of(self.signalled)
