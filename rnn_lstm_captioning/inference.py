"""Captions for pictures, from a checkpoint alone.

captioner = load_captioner("cv/attn_best.pt")
print(captioner.caption("photo.jpg").text)
"""

from typing import NamedTuple

import torch

from .checkpoint import load_checkpoint, restore_captioner
from .data.images import load_image
from .decoding import decode
from .errors import InputError
from .layers import evaluating
from .vocabulary import END, NULL


class Caption(NamedTuple):
    """A caption of one picture."""

    text: str
    tokens: list  # its words
    log_prob: float  # natural logarithm of its probability
    attention: torch.Tensor | None  # (len(tokens), grid_h, grid_w), where the model looked at each word


class PictureCaptioner:
    """A trained captioner, with the size at which it takes pictures.

    Attributes: model, a :class:`CaptioningRNN`; stored_size, in pixels; device.
    """

    def __init__(self, model, stored_size, device="cpu"):
        self.model, self.stored_size, self.device = model.to(device), stored_size, device

    def caption(self, picture, **decoding):
        """The caption of a picture.

        Args: picture, a file's path, an open binary file or a PIL image; the keywords of
            :func:`~rnn_lstm_captioning.decoding.decode`.
        Returns: :class:`Caption`. Raises: InputError if the picture cannot be read.
        """
        try:
            image = load_image(picture, self.stored_size)
        except (OSError, ValueError) as error:
            raise InputError(f"{picture}: {error}") from error
        return self.caption_images(image[None], **decoding)[0]

    def caption_images(self, images, batch_size=64, **decoding):
        """A list of N :class:`Caption`, for images uint8 (N, 3, S, S)."""
        captions = []
        for batch in images.split(batch_size) if len(images) else ():
            with evaluating(self.model):
                features = self.model.encode(batch.to(self.device))
            captions += self.caption_features(features, **decoding)
        return captions

    def caption_features(self, features, batch_size=64, **decoding):
        """A list of N :class:`Caption`, for features (N, C, grid_h, grid_w)."""
        captions = []
        for batch in features.split(batch_size) if len(features) else ():
            with evaluating(self.model):
                found = decode(self.model, batch.to(self.device), **decoding)
            attention = [None] * len(batch) if found.attn_weights is None else found.attn_weights.cpu()
            for words, log_prob, weights in zip(found.captions.tolist(), found.log_probs.tolist(), attention):
                tokens = [self.model.idx_to_word[word] for word in words if word not in (NULL, END)]
                captions.append(
                    Caption(" ".join(tokens), tokens, log_prob, None if weights is None else weights[: len(tokens)])
                )
        return captions


def load_captioner(path, device=None):
    """The :class:`PictureCaptioner` of a checkpoint. Raises: InputError that says why it cannot be used."""
    checkpoint = load_checkpoint(path)
    return PictureCaptioner(restore_captioner(checkpoint, path), checkpoint["image_size"], device or default_device())


def default_device():
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
