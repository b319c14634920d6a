"""The settings of a training run. Each field has the name of a flag of train_*.py, and is stored in the checkpoint."""

from dataclasses import dataclass

from ..errors import InputError

BATCHINGS = ("padded", "length")
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16")
SCORES = ("cider", "loss")


@dataclass(frozen=True)
class DataSettings:
    """The data that a captioner is trained on."""

    data: str = "scenes"  # a caption file, or "scenes"
    num_train: int | None = None  # use only the first N training captions; None: all
    augment: bool = False  # random crops and mirroring; the CNN then runs in every step
    encoder_weights: str = "none"  # "imagenet", "none" or a file

    def __post_init__(self) -> None:
        if self.num_train is not None and not (isinstance(self.num_train, int) and self.num_train > 0):
            raise InputError(f"num_train is {self.num_train}, wanted an int above 0, or None")


@dataclass(frozen=True)
class TrainingSettings:
    """How a captioner is trained. Raises: InputError for a value that can't be used."""

    epochs: int = 60
    batch_size: int = 256  # captions, of all processes together
    batching: str = "padded"  # "length": captions of one length in a batch
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None  # of a CNN that is trained; None: learning_rate
    schedule: str = "cosine"
    warmup: float = 0.05  # the fraction of all steps in which the learning rate rises linearly
    clip: float = 5.0  # the largest norm of the gradient; 0: no limit
    weight_decay: float = 1e-2  # of matrices; vectors have none
    best_by: str = "cider"  # of greedy validation captions, where there are references; or "loss"
    patience: int = 0  # stop this many epochs after the best one; 0: never
    self_critical: bool = False  # maximise the CIDEr of sampled captions (Rennie et al. 2017)
    seed: int = 0
    precision: str = "fp32"  # "bf16": with torch.autocast
    compile: bool = False  # the cell's functions, with torch.compile
    save_every: int = 0  # steps; 0: only after each epoch
    dry_run: bool = False  # at most four batches per epoch
    quiet: bool = False  # no progress bars

    def __post_init__(self) -> None:
        choices = {
            "batching": BATCHINGS,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
            "best_by": SCORES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(known)}")
        for name in ("epochs", "batch_size", "patience", "save_every", "seed"):
            value, least = getattr(self, name), int(name in ("epochs", "batch_size"))
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value}, wanted an int of at least {least}")
        for name in ("learning_rate", "encoder_learning_rate", "clip", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}, wanted a number of at least 0")
        for name in ("learning_rate", "encoder_learning_rate"):
            if getattr(self, name) == 0:
                raise InputError(f"{name} is 0, wanted above 0")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}, wanted in [0, 1)")
        if self.self_critical and self.batching == "length":
            raise InputError(
                "self-critical training needs the captions of an image in one batch: "
                "it can't be used with --batching length"
            )
