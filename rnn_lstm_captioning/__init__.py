"""Recurrent image captioning, from scratch: the code you read is the code that trains.

Names are imported when they are first used, so that ``import rnn_lstm_captioning.cells`` loads torch and nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cells import *
    from .cells.layers import WordEmbedding as WordEmbedding
    from .cells.losses import temporal_softmax_loss as temporal_softmax_loss
    from .data.caption_file import load_captions as load_captions
    from .errors import InputError as InputError
    from .evaluation.captions import load_captioner as load_captioner
    from .evaluation.metrics import score_captions as score_captions
    from .model.captioner import CaptioningRNN as CaptioningRNN
    from .model.captioner import build_captioner as build_captioner
    from .model.checkpoint import save_checkpoint as save_checkpoint
    from .model.decoding import Decoding as Decoding
    from .model.encoder import ImageEncoder as ImageEncoder
    from .model.settings import ModelSettings as ModelSettings
    from .training.features import prepare_training as prepare_training
    from .training.settings import DataSettings as DataSettings
    from .training.settings import TrainingSettings as TrainingSettings
    from .training.trainer import Trainer as Trainer
    from .training.trainer import evaluate as evaluate

_MODULES = {
    "cells.layers": ["WordEmbedding"],
    "cells.losses": ["temporal_softmax_loss"],
    "data.caption_file": ["load_captions"],
    "errors": ["InputError"],
    "evaluation.captions": ["load_captioner"],
    "evaluation.metrics": ["score_captions"],
    "model.captioner": ["CaptioningRNN", "build_captioner"],
    "model.checkpoint": ["save_checkpoint"],
    "model.decoding": ["Decoding"],
    "model.encoder": ["ImageEncoder"],
    "model.settings": ["ModelSettings"],
    "training.features": ["prepare_training"],
    "training.settings": ["DataSettings", "TrainingSettings"],
    "training.trainer": ["Trainer", "evaluate"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for `from rnn_lstm_captioning import *`, as notebooks do
        return __dir__()
    if name.startswith("__"):
        raise AttributeError(name)
    home = importlib.import_module(f".{_HOMES.get(name, 'cells')}", __name__)
    if not hasattr(home, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    cells = importlib.import_module(".cells", __name__)
    return sorted([*_HOMES, *(name for name in vars(cells) if not name.startswith("_"))])
