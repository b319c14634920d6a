"""Several captioners that write a caption together: at every step, the mean of their probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.vocabulary import NULL
from ..errors import InputError
from .captioner import CaptioningRNN

State = tuple[Tensor, ...]


class Ensemble(nn.Module):
    """The mean of the probabilities of several captioners, word by word. It has what the searches and the evaluation
    need of a captioner, so every search works with it, and the captioners may have different cells and encoders.

    Its features are those of all captioners, each flattened, side by side in one matrix; so are its states and what
    the cells read of the image.

    Raises: InputError if there is no captioner, or their vocabularies differ.
    """

    def __init__(self, captioners: Sequence[CaptioningRNN]) -> None:
        super().__init__()
        if not captioners:
            raise InputError("an ensemble needs at least one captioner")
        first = captioners[0]
        if any(captioner.idx_to_word != first.idx_to_word for captioner in captioners):
            raise InputError("the captioners of an ensemble must have the same vocabulary")
        self.captioners = list(captioners)
        self.parts = nn.ModuleList(captioners)  # so that .to and .eval reach them
        self.idx_to_word, self.word_to_idx, self.cell_type = first.idx_to_word, first.word_to_idx, "ensemble"
        self.shapes: list[tuple[int, ...]] = []  # of each captioner's features, for one image

    @property
    def feature_mean(self) -> Tensor:
        """A tensor on the ensemble's device."""
        return self.captioners[0].feature_mean

    @property
    def written_once(self) -> Tensor:
        """bool (V,): the words that no captioner writes twice."""
        return torch.stack([captioner.written_once for captioner in self.captioners]).all(0)

    @property
    def never_last(self) -> Tensor:
        """bool (V,): the words with which no captioner ends a caption."""
        return torch.stack([captioner.never_last for captioner in self.captioners]).all(0)

    def encode(self, images: Tensor) -> Tensor:
        """images (N, 3, S, S) -> the features of all captioners (N, K)."""
        return self.join([captioner.encode(images) for captioner in self.captioners])

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """The features of each captioner, (N, C, grid_h, grid_w) -> (N, K), side by side."""
        self.shapes = [tuple(part.shape[1:]) for part in features]
        return torch.cat([part.flatten(1) for part in features], dim=1)

    def start(self, features: Tensor) -> tuple[State, Tensor]:
        """features (N, K), of this ensemble -> the states of all captioners, and what they read of the image."""
        starts = [c.start(part) for c, part in zip(self.captioners, self._parts(features, self.shapes))]
        self._counts = [len(state) for state, _ in starts]
        self._image_shapes = [tuple(image.shape[1:]) for _, image in starts]
        image = torch.cat([image.flatten(1) for _, image in starts], dim=1)
        return tuple(part for state, _ in starts for part in state), image

    def step(self, words: Tensor, state: State, image: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """words int64 (N,) -> the log of the mean probability of every word (N, V), the next state, and the mean of the
        attention weights of the captioners that have the first one's grid, or None."""
        images, rest = self._parts(image, self._image_shapes), list(state)
        log_probs: list[Tensor] = []
        new: list[Tensor] = []
        attention: list[Tensor] = []
        for captioner, count, seen in zip(self.captioners, self._counts, images):
            own, rest = tuple(rest[:count]), rest[count:]
            scores, own, weights = captioner.step(words, own, seen)
            log_probs.append(scores.float().log_softmax(dim=1))
            new += own
            if weights is not None and (not attention or weights.shape == attention[0].shape):
                attention.append(weights)
        weights = torch.stack(attention).mean(0) if attention else None
        return _log_mean(log_probs), tuple(new), weights

    def scores(self, features: Tensor, words: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """Teacher forcing: words int64 (N, T) that begin with ``<START>`` -> log-probabilities (N, T, V)."""
        scores = [
            captioner.scores(part, words, image_of_caption)
            for captioner, part in zip(self.captioners, self._parts(features, self.shapes))
        ]
        return _log_mean([of_one.float().log_softmax(2) for of_one in scores])

    def log_probs(self, features: Tensor, captions: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """The log-probability of each caption, (N,); see :meth:`CaptioningRNN.log_probs`."""
        words = captions[:, 1:]
        scores = self.scores(features, captions[:, :-1], image_of_caption)
        return scores.gather(2, words.unsqueeze(2)).squeeze(2).where(words != NULL, 0).sum(dim=1)

    def loss(self, features: Tensor, captions: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """The mean loss per caption in nats; see :meth:`CaptioningRNN.loss`."""
        return -self.log_probs(features, captions, image_of_caption).mean()

    def _parts(self, joined, shapes):
        sizes = [math.prod(shape) for shape in shapes]
        if not sizes or joined.shape[1] != sum(sizes):
            raise ValueError("these are not features of this ensemble: use its encode")
        return [part.unflatten(1, shape) for part, shape in zip(joined.split(sizes, dim=1), shapes)]


def _log_mean(log_probs):
    """The log of the mean of several distributions, of their logs."""
    return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))
