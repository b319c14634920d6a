"""Caption images with a checkpoint; it is all that you need.

captioner = load_captioner("cv/attn_best.pt")
print(captioner.caption("photo.jpg").text)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.images import ImageSource, load_image
from ..data.vocabulary import END, NULL, START, tokenize
from ..errors import InputError
from ..model.captioner import CaptioningRNN, evaluating
from ..model.checkpoint import load_checkpoint, restore_captioner
from ..model.decoding import Captioner, Decoding, allowed, decode
from .confidence import Confidence, restore_confidence

PIXELS = 64 * 512 * 512  # that the CNN is fed at a time: a few gigabytes


class Caption(NamedTuple):
    """A caption of one image."""

    text: str
    words: list[str]
    log_prob: float  # natural logarithm of its probability
    attention: Tensor | None  # (len(words), grid_h, grid_w), where the model looked for each word
    # of a model that was exported with --calibrate
    sure: float | None = None  # how much of it people would say too, from 0 to 1 (evaluation/confidence.py)
    familiar: bool | None = None  # whether the image is like those that the model was trained on


class ImageCaptioner:
    """A trained captioner, with the stored size of its images.

    Attributes: model, a :class:`CaptioningRNN`; stored_size, in pixels; device; confidence, how sure the model is, if
        that was measured.
    """

    def __init__(
        self, model: CaptioningRNN, stored_size: int, device: str = "cpu", confidence: Confidence | None = None
    ) -> None:
        self.model, self.stored_size, self.device = model.to(device), stored_size, device
        self.confidence = confidence

    def caption(
        self,
        image: ImageSource,
        beginning: str | Sequence[str] = (),
        generator: torch.Generator | None = None,
        **decoding: Any,
    ) -> Caption:
        """The caption of one image.

        Args: image, the path of a file, an open binary file or a PIL image; beginning, words that the caption starts
            with, as text or a list; generator, the source of randomness for temperature, top_k and top_p; decoding, the
            values of :class:`~rnn_lstm_captioning.Decoding`, such as beam=1; the others are the recommended ones.
        Raises: InputError if the image can't be read, a value is out of range, or the model does not know a word of
            the beginning.
        """
        try:
            pixels = load_image(image, self.stored_size)
        except (OSError, ValueError) as error:
            raise InputError(f"{image}: {error}") from error
        search = Decoding.recommended(**decoding)
        return self.caption_images(pixels[None], search, beginning=beginning, generator=generator)[0]

    def caption_images(
        self,
        images: Tensor,
        decoding: Decoding | None = None,
        *,
        beginning: str | Sequence[str] = (),
        batch_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> list[Caption]:
        """Images uint8 (N, 3, S, S) -> a list of N :class:`Caption`."""
        captions = []
        batch_size = max(1, min(batch_size, PIXELS // images[0, 0].numel())) if len(images) else 1
        for batch in images.split(batch_size) if len(images) else ():
            with evaluating(self.model):
                features = self.model.encode(batch.to(self.device))
            captions += self.caption_features(features, decoding, beginning=beginning, generator=generator)
        return captions

    def caption_features(
        self,
        features: Tensor,
        decoding: Decoding | None = None,
        *,
        beginning: str | Sequence[str] = (),
        batch_size: int = 64,
        generator: torch.Generator | None = None,
        using: Captioner | None = None,
    ) -> list[Caption]:
        """Features (N, C, grid_h, grid_w) -> a list of N :class:`Caption`. Args: using, what writes the captions in the
        place of the model, such as the model under an intervention."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, wanted at least 1")
        indices = self._indices(beginning)
        captions = []
        for batch in features.split(batch_size) if len(features) else ():
            with evaluating(self.model):
                found = decode(using or self.model, batch.to(self.device), decoding, indices, generator)
            if found.log_probs.isnan().any():
                raise InputError("the model's scores are not numbers (NaN): its weights or the features are damaged")
            attention = [None] * len(batch) if found.attn_weights is None else found.attn_weights.cpu()
            familiar = self.confidence.familiar(batch).tolist() if self.confidence else [None] * len(batch)
            rows = zip(found.captions.tolist(), found.log_probs.tolist(), attention, familiar)
            for row, log_prob, weights, known in rows:
                words = [self.model.idx_to_word[word] for word in row if word not in (NULL, END)]
                looked = None if weights is None else weights[: len(words)]
                sure = self.confidence.share(log_prob, len(words)) if self.confidence else None
                captions.append(Caption(" ".join(words), words, log_prob, looked, sure, known))
        return captions

    def log_probs(self, features: Tensor, captions: Sequence[Caption]) -> Tensor:
        """The log-probability of each caption given each image.

        Args: features (n, C, grid_h, grid_w) of n images; captions, a list of m. Returns: (m, n), in nats.
        """
        longest = max(len(caption.words) for caption in captions)
        rows = torch.full((len(captions), longest + 2), NULL)
        for row, caption in zip(rows, captions):
            row[: len(caption.words) + 2] = torch.tensor([START, *self._indices(caption.words), END])
        found = []
        with evaluating(self.model):
            for row in rows.to(self.device):
                own = row[row != NULL]
                found.append(self.model.log_probs(features.to(self.device), own.expand(len(features), -1)))
        return torch.stack(found).cpu()

    def next_words(self, features: Tensor, words: Sequence[str], top: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable words at every position of a caption, given the words before it.

        Args: features (1, C, grid_h, grid_w); words, the caption's T words.
        Returns: T + 1 lists of the ``top`` most probable words with their probabilities; the last list is for the
            word after the caption.
        """
        if top < 1:
            raise InputError(f"top is {top}, wanted at least 1")
        indices = torch.tensor([[START, *self._indices(words)]], device=self.device)
        with evaluating(self.model):
            scores = allowed(self.model.scores(features.to(self.device), indices)[0])  # (T + 1, V)
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


def load_captioner(path: str | Path, device: str | None = None) -> ImageCaptioner:
    """The :class:`ImageCaptioner` of a checkpoint. Raises: InputError that says why it can't be used."""
    checkpoint = load_checkpoint(path)
    model, confidence = restore_captioner(checkpoint, path), restore_confidence(checkpoint, path)
    return ImageCaptioner(model, checkpoint.stored_size, device or default_device(), confidence)


def default_device() -> str:
    """ "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
