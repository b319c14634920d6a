"""Pairs of captions and images, and the batches into which they are divided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.images import random_crops
from ..data.vocabulary import NULL


@dataclass
class Batch:
    """n captions with the features of their m images, or with the images, if the encoder runs in every step."""

    captions: Tensor  # int64 (n, L), L is the length of the longest one
    image_index: Tensor  # int64 (n,), on the CPU: which image of the split each caption describes
    image_of_caption: Tensor  # int64 (n,), the row of features or images that each caption describes
    features: Tensor | None = None  # (m, C, grid_h, grid_w), each image once
    images: Tensor | None = None  # (m, 3, S, S), each image once


@dataclass
class Pairs:
    """The captions of a split, with the cached features of its images, or with the images, if the encoder runs in
    every step."""

    captions: Tensor  # int64 (R, L)
    image_index: Tensor  # int64 (R,)
    features: Tensor | None = None  # float16 (M, C, grid_h, grid_w)
    images: Tensor | None = None  # uint8 (M, 3, S, S)
    crop_size: int | None = None  # augmentation: the side in pixels of a random crop of each image
    together: bool = False  # the captions of an image are in one batch
    references: Sequence[list[str]] | None = None  # of each image, to score captions against

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def num_words(self) -> int:
        """How many words are predicted: all except ``<START>`` and the padding."""
        return int((self.captions[:, 1:] != NULL).sum())

    def subset(self, size: int) -> "Pairs":
        """At most ``size`` of the pairs, evenly spaced, without augmentation; with ``together``, all those of evenly
        spaced images."""
        if self.together and len(self) > size:
            num_images = int(self.image_index.max()) + 1
            chosen = torch.linspace(0, num_images - 1, max(1, num_images * size // len(self))).long()
            rows = torch.isin(self.image_index, chosen).nonzero().flatten()
        else:
            rows = torch.linspace(0, len(self) - 1, min(len(self), size)).long()
        return replace(self, captions=self.captions[rows], image_index=self.image_index[rows], crop_size=None)

    def row_batches(
        self, batch_size: int, batching: str = "padded", generator: torch.Generator | None = None
    ) -> Sequence[Tensor]:
        """The row indices of batches that contain every caption once, in random order.

        "padded" batches hold captions of any length. "length" batches hold captions of one length, so nothing is
        padded; the order of the batches is random. With ``together``, a padded batch holds images with all their
        captions: an encoder that runs in every step then processes an image once per epoch, not once per caption.
        """
        if self.together:
            num_images = int(self.image_index.max()) + 1
            order = torch.randperm(num_images, generator=generator)[self.image_index].argsort(stable=True)
        else:
            order = torch.randperm(len(self), generator=generator)
        if batching == "padded":
            return self._whole_images(order, batch_size) if self.together else order.split(batch_size)
        lengths = (self.captions[order] != NULL).sum(1)
        batches = [rows for length in lengths.unique() for rows in order[lengths == length].split(batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _whole_images(self, order, batch_size):
        """Part an order, in which the captions of an image stand side by side, into batches of about this size without
        parting an image. The number of batches is the same in every order; if it can't be, images are parted."""
        number = -(-len(order) // batch_size)
        images = self.image_index[order]
        firsts = torch.cat([torch.tensor([0]), 1 + (images[1:] != images[:-1]).nonzero().flatten()])
        counts = firsts.diff(append=torch.tensor([len(order)]))
        batch_of_image = firsts * number // len(order)
        sizes = torch.zeros(number, dtype=torch.int64).index_add_(0, batch_of_image, counts)
        return order.split(sizes.tolist() if sizes.all() else batch_size)

    def batch(self, rows: Tensor, device: str | torch.device) -> Batch:
        """The captions of some rows with their features or images, on a device."""
        captions = self.captions[rows]
        captions = captions[:, : int((captions != NULL).sum(1).amax())]  # no columns with padding alone
        images, image_of_caption = self.image_index[rows].unique(return_inverse=True)
        batch = Batch(captions.to(device), self.image_index[rows], image_of_caption.to(device))
        if self.features is not None:
            batch.features = self.features[images].to(device)
            return batch
        assert self.images is not None, "pairs need features or images"
        batch.images = self.images[images].to(device)
        if self.crop_size:
            batch.images = random_crops(batch.images, self.crop_size)
        return batch
