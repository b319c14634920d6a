"""Pairs of captions and images, in batches, and the loss on them."""

from dataclasses import dataclass, replace

import torch

from . import distributed
from .data.images import random_crops
from .layers import evaluating
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
    """The loss on all pairs, each process taking its share. Returns: nats per caption, nats per word."""
    total = 0.0
    with evaluating(captioner):
        for rows in distributed.share(torch.arange(len(pairs))).split(batch_size):
            if len(rows):  # a process may have no share
                with autocast():
                    total += pairs.batch_loss(captioner, rows, device).item() * len(rows)
    total = sum(distributed.gather(total))
    return total / len(pairs), total / pairs.words
