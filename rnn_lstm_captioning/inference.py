"""Captions for pictures, from a checkpoint alone.

captioner = load_captioner("cv/attn_best.pt")
print(captioner.caption("photo.jpg").text)
"""

from typing import NamedTuple

import torch

from .checkpoint import load_checkpoint, restore_captioner
from .data.images import load_image
from .decoding import allowed, decode
from .errors import InputError
from .layers import evaluating
from .vocabulary import END, NULL, START, tokenize


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

        Args: picture, a file's path, an open binary file or a PIL image; beginning, words that the
            caption starts with, as text or a list; the other keywords of
            :func:`~rnn_lstm_captioning.decoding.decode`.
        Returns: :class:`Caption`. Raises: InputError if the picture cannot be read, or the beginning
            has a word that the model does not know.
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

    def caption_features(self, features, batch_size=64, beginning=(), **decoding):
        """A list of N :class:`Caption`, for features (N, C, grid_h, grid_w)."""
        beginning = self._indices(beginning)
        captions = []
        for batch in features.split(batch_size) if len(features) else ():
            with evaluating(self.model):
                found = decode(self.model, batch.to(self.device), beginning=beginning, **decoding)
            attention = [None] * len(batch) if found.attn_weights is None else found.attn_weights.cpu()
            for words, log_prob, weights in zip(found.captions.tolist(), found.log_probs.tolist(), attention):
                tokens = [self.model.idx_to_word[word] for word in words if word not in (NULL, END)]
                captions.append(
                    Caption(" ".join(tokens), tokens, log_prob, None if weights is None else weights[: len(tokens)])
                )
        return captions

    def next_words(self, features, tokens, top=5):
        """What the model would have written at every place of a caption, given the words before it.

        Args: features (1, C, grid_h, grid_w); tokens, the caption's T words.
        Returns: T + 1 lists, the last for what follows the caption, of the ``top`` most probable
            words with their probabilities.
        """
        words = torch.tensor([[START, *self._indices(tokens)]], device=self.device)
        with evaluating(self.model):
            scores = allowed(self.model.scores(features.to(self.device), words)[0])  # (T + 1, V)
        best = scores.softmax(dim=1).topk(min(top, scores.shape[1] - 3))
        return [
            [(self.model.idx_to_word[word], prob) for word, prob in zip(*row)]
            for row in zip(best.indices.tolist(), best.values.tolist())
        ]

    def _indices(self, words):
        words = tokenize(words) if isinstance(words, str) else words
        unknown = [word for word in words if word not in self.model.word_to_idx]
        if unknown:
            raise InputError(f"the model does not know the word {unknown[0]!r}")
        return [self.model.word_to_idx[word] for word in words]


def load_captioner(path, device=None):
    """The :class:`PictureCaptioner` of a checkpoint. Raises: InputError that says why it cannot be used."""
    checkpoint = load_checkpoint(path)
    return PictureCaptioner(restore_captioner(checkpoint, path), checkpoint["image_size"], device or default_device())


def default_device():
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
