"""Recurrent image captioning, from scratch: the code you read is the code that trains."""

from .captioner import CaptioningRNN
from .cells import *  # noqa: F403
from .cells import __all__ as _cells
from .encoder import ImageEncoder
from .errors import InputError
from .inference import load_captioner
from .layers import WordEmbedding, temporal_softmax_loss

__all__ = [
    *_cells,
    "CaptioningRNN",
    "ImageEncoder",
    "InputError",
    "WordEmbedding",
    "load_captioner",
    "temporal_softmax_loss",
]
