"""The training loop. It knows nothing about which cell it trains."""

import csv
import math
import signal
import time
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .data.images import random_crops
from .errors import RunFailed
from .layers import evaluating
from .storage import replacing
from .vocabulary import NULL

BATCHINGS = ("padded", "length")


@dataclass
class Pairs:
    """Captions with what the captioner needs of their images: cached features, or the images themselves
    if the encoder is in the loop."""

    captions: torch.Tensor  # int64 (R, L)
    image_index: torch.Tensor  # int64 (R,)
    features: torch.Tensor | None = None  # float16 (M, C, grid_h, grid_w)
    images: torch.Tensor | None = None  # uint8 (M, 3, S, S)
    augment: bool = False  # take a random crop of each image, of the encoder's image size
    together: bool = False  # captions of one image come in one batch

    def __len__(self):
        return len(self.captions)

    @property
    def words(self):
        """How many words the captions score: all but ``<START>`` and the padding."""
        return (self.captions[:, 1:] != NULL).sum().item()

    def sample(self, count):
        """``count`` of the pairs, spread evenly over all."""
        rows = torch.linspace(0, len(self) - 1, min(len(self), count)).long()
        return replace(self, captions=self.captions[rows], image_index=self.image_index[rows], augment=False)

    def batches(self, batch_size, batching="padded", generator=None):
        """All captions once, in random order, as row indices of batches.

        "padded" batches have captions of any length. "length" ones have captions of one length, so
        that nothing is padded; since their order is random too, a length comes as often as it occurs.
        With ``together``, captions of one image stay together: an encoder in the loop then sees it once
        per epoch, not once per caption.
        """
        if self.together:
            num_images = int(self.image_index.max()) + 1
            order = torch.randperm(num_images, generator=generator)[self.image_index].argsort(stable=True)
        else:
            order = torch.randperm(len(self), generator=generator)
        if batching == "padded":
            return order.split(batch_size)
        lengths = (self.captions[order] != NULL).sum(1)
        batches = [rows for length in lengths.unique() for rows in order[lengths == length].split(batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def batch_loss(self, captioner, rows, device):
        """The captioner's loss on some caption rows."""
        captions = self.captions[rows]
        captions = captions[:, : (captions != NULL).sum(1).amax()].to(device)  # no step on padding alone
        return captioner.loss(self.row_features(captioner, rows, device), captions)

    def row_features(self, captioner, rows, device):
        """The features (n, C, grid_h, grid_w) of the images of n caption rows; every image is encoded once."""
        if self.features is not None:
            return self.features[self.image_index[rows]].to(device)
        pictures, inverse = self.image_index[rows].unique(return_inverse=True)
        images = self.images[pictures].to(device)
        if self.augment:
            images = random_crops(images, captioner.image_encoder.image_size)
        return captioner.encode(images)[inverse.to(device)]


def evaluate(captioner, pairs, batch_size, device, autocast):
    """The loss on all pairs. Returns: nats per caption, nats per word."""
    total = 0.0
    with evaluating(captioner):
        for rows in torch.arange(len(pairs)).split(batch_size):
            with autocast():
                total += pairs.batch_loss(captioner, rows, device).item() * len(rows)
    return total / len(pairs), total / pairs.words


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


class Trainer:
    """Trains a captioner, and can stop after any step and go on from there.

    Args: captioner; train and val, :class:`Pairs`; settings, the parsed command line; save, called
        with "last" or "best" and this trainer whenever a checkpoint is due; autocast, a function
        that returns the context in which the loss is computed; score, a function that returns the
        CIDEr of the captions that the captioner now writes for val, or None: then the best epoch is
        the one with the lowest validation loss; objective, whose batch_loss is minimised (train's).
    """

    def __init__(self, captioner, train, val, settings, save, autocast, score=None, objective=None):
        self.captioner, self.train, self.val, self.objective = captioner, train, val, objective or train
        self.settings, self.save, self.autocast, self.score = settings, save, autocast, score
        optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
        parameters = [p for p in captioner.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
        self.optimizer = optimizer(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            fused=parameters[0].device.type in ("cpu", "cuda"),  # one pass over memory
        )
        self.steps_per_epoch = len(self.batches_of_epoch(0))
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step, self.history, self.best = 0, [], None  # best: its row of the history
        self.captions_per_second, self.epoch_start = math.nan, time.monotonic()

    def run(self):
        """Train to the last epoch. Returns False if Ctrl-C ended it before; a checkpoint is saved either way."""
        with _Interruption() as interruption:
            epochs_done, steps_left_over = divmod(self.step, self.steps_per_epoch)
            if epochs_done > len(self.history) and not steps_left_over:
                self.finish_epoch()  # what was resumed ended between an epoch's last step and its evaluation
            while self.step < self.total_steps:
                if self.train_one_epoch(interruption):
                    self.finish_epoch()
                else:
                    self.save("last", self)
                if interruption.noticed:
                    return self.step == self.total_steps
                if self.out_of_patience():
                    break
        return True

    def out_of_patience(self):
        """Whether the best epoch is too long ago."""
        patience, last = self.settings.patience, self.history[-1]["epoch"]
        return bool(patience) and self.step < self.total_steps and last - self.best["epoch"] >= patience

    def train_one_epoch(self, interruption):
        """From the current step to the end of its epoch. Returns False if interrupted before that."""
        settings, captioner, device = self.settings, self.captioner, self.settings.device
        captioner.train()
        epoch, start = divmod(self.step, self.steps_per_epoch)
        batches = self.batches_of_epoch(epoch)[start:]
        self.epoch_start = time.monotonic()
        with tqdm(batches, desc=f"epoch {epoch + 1}/{settings.epochs}", disable=settings.quiet, leave=False) as bar:
            for rows in bar:
                for group in self.optimizer.param_groups:
                    factor = learning_rate_factor(settings.schedule, self.step, self.total_steps)
                    group["lr"] = settings.learning_rate * factor
                with self.autocast():
                    loss = self.objective.batch_loss(captioner, rows, device)
                self.optimizer.zero_grad()
                loss.backward()
                norm = clip_grad_norm_(captioner.parameters(), settings.clip or math.inf)
                if not torch.isfinite(loss + norm):
                    raise RunFailed(
                        f"step {self.step + 1}: the loss is {loss.item()}, the gradient's norm {norm.item()}; "
                        "use a lower --learning-rate or --clip"
                    )
                self.optimizer.step()
                self.step += 1
                self.show(bar, loss.item(), rows)
                if interruption.noticed and self.step % self.steps_per_epoch:
                    return False
                if settings.save_every and self.step % settings.save_every == 0:
                    self.save("last", self)
        self.captions_per_second = sum(map(len, batches)) / (time.monotonic() - self.epoch_start)
        return True

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
            f"{value}, {(rate or 0) * self.settings.batch_size:.0f} captions/s, {left / 60:.0f} min to the end"
        )

    def finish_epoch(self):
        """Evaluate both splits, log, and save."""
        settings = self.settings
        row = {"epoch": self.step // self.steps_per_epoch, "step": self.step}
        for name, pairs in (("train", self.train.sample(len(self.val))), ("val", self.val)):
            per_caption, per_word = evaluate(self.captioner, pairs, settings.batch_size, settings.device, self.autocast)
            row |= {f"{name}_loss": per_caption, f"{name}_loss_per_word": per_word}
            row[f"{name}_perplexity"] = math.exp(min(per_word, 99))
        row["captions_per_second"] = self.captions_per_second
        if self.score:
            row["val_cider"] = self.score()
        row["seconds"] = time.monotonic() - self.epoch_start
        self.history.append(row)
        if self.best is None or merit(row) > merit(self.best):
            self.best = row
            self.save("best", self)
        self.save("last", self)

    def state_dict(self):
        """What another trainer with the same settings needs to go on from here."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "random_state": torch.get_rng_state(),
            "cuda_random_states": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        torch.set_rng_state(state["random_state"])
        states = state.get("cuda_random_states", [])
        if states and len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)


class _Interruption:
    """Notices the first Ctrl-C and lets the step end; the second one acts at once."""

    def __enter__(self):
        self.noticed = False
        self.previous = signal.signal(signal.SIGINT, self._notice)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.previous)

    def _notice(self, *_):
        self.noticed = True
        signal.signal(signal.SIGINT, self.previous)


def write_log(path, history):
    """The history of a training run as CSV, one row per epoch."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in history)
