"""Make pairs for training or evaluation from a split of a caption file, and cache the features of its images."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.caption_file import CaptionData, Split
from ..data.vocabulary import decode_captions
from ..errors import InputError, RunFailed
from ..files import open_file
from ..model.captioner import CaptioningRNN, evaluating
from ..model.encoder import ImageEncoder
from ..storage import cache_folder, read_only, replacing
from ..text import printable
from . import distributed
from .batches import Pairs
from .precision import autocast
from .settings import DataSettings


@dataclass(frozen=True)
class FeaturePass:
    """How the features of a split are computed, and where they are kept."""

    precision: str = "fp32"
    cache: Path | None = None  # a folder; None: that of the data if it is writable, else the user's cache
    batch_size: int = 64  # images
    progress: bool = True  # show a progress bar

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, wanted at least 1")


def prepare_training(
    captioner: CaptioningRNN,
    data: CaptionData,
    settings: DataSettings | None = None,
    feature_pass: FeaturePass | None = None,
    together: bool = False,
    new: bool = True,
) -> tuple[Pairs, Pairs]:
    """The training and validation pairs.

    Args: together, the captions of an image are in one batch, also if its features are kept; new, the captioner has not
        been trained: a random CNN is calibrated and the features are standardised, on the training images.
    Raises: InputError if the settings ask for crops, and the encoder has no image size.
    """
    settings = settings or DataSettings()
    encoder = captioner.image_encoder
    device = captioner.feature_mean.device
    if new and encoder.random_weights and encoder.frozen:
        images = data.splits["train"].images
        encoder.calibrate(images[:: 1 + len(images) // 64].to(device))
    distributed.broadcast_parameters(captioner)  # machines may compute another last bit
    crop_size = None
    if settings.augment:
        if encoder.image_size is None:
            raise InputError("augment crops images to the image_size of the encoder, which is None: set it")
        crop_size = min(encoder.image_size, data.splits["train"].images.shape[-1])  # the encoder enlarges
    train = prepare_pairs(
        captioner, data, "train", feature_pass, first=settings.num_train, crop_size=crop_size, together=together
    )
    val = prepare_pairs(captioner, data, "val", feature_pass)
    captioner.count_words(train.captions.to(device))
    if new:
        standardize_features(captioner, train)
    return train, val


def prepare_pairs(
    captioner: CaptioningRNN,
    data: CaptionData,
    name: str,
    feature_pass: FeaturePass | None = None,
    *,
    first: int | None = None,
    crop_size: int | None = None,
    together: bool = False,
    cached: bool | None = None,
) -> Pairs:
    """The pairs of a split, with its images if the encoder runs in every step, else with their features.

    Args: name, of the split; first, take only this many captions; crop_size and together, see :class:`Pairs`; cached,
        whether features are computed once (None: if the encoder is frozen and there is no augmentation).
    """
    feature_pass = feature_pass or FeaturePass()
    split = data.splits[name].first(first)
    encoder = captioner.image_encoder
    pairs = Pairs(split.captions, split.image_index, references=split.references, together=together)
    if not (encoder.frozen and not crop_size if cached is None else cached):
        pairs.images, pairs.crop_size = split.images, crop_size
        pairs.together = True
        return pairs
    stem = None  # an encoder in training changes its features: don't store them
    if encoder.frozen:
        beside = Path(data.source).parent
        keep_beside = data.source != "scenes" and os.access(beside, os.W_OK)
        folder = feature_pass.cache or (beside if keep_beside else cache_folder())
        stem = folder / f"{Path(data.source).name[:100]}.{name}"
    pairs.features = encode_all(encoder, split.images, feature_pass, stem, data.identity, name)
    if not captioner.cell.uses_grid:  # the cell reads the mean only: pool once, not in every batch
        pairs.features = pool(pairs.features)
    return pairs


def standardize_features(captioner: CaptioningRNN, train: Pairs) -> None:
    """Standardise the features with their mean and variance on the training pairs.

    This leaves out a CNN with random weights that will be trained: its own BatchNorm keeps its features in range.
    """
    encoder = captioner.image_encoder
    if train.features is not None:
        captioner.standardize(train.features)
    elif encoder.frozen or not encoder.random_weights:
        assert train.images is not None
        with evaluating(captioner):
            images = train.images[:: 1 + len(train.images) // 256]
            features = [captioner.encode(part.to(captioner.feature_mean.device)) for part in images.split(32)]
            captioner.standardize(torch.cat(features))


def pool(features: Tensor) -> Tensor:
    """The mean over the grid: float16 (M, C, grid_h, grid_w) -> (M, C, 1, 1), in parts that fit into memory."""
    return torch.cat([part.float().mean((2, 3), keepdim=True).half() for part in features.split(1024)])


def references_of(split: Split, data: CaptionData) -> Sequence[list[str]]:
    """The raw references of every image; if the file has none, its captions without unknown words."""
    if split.references:
        return split.references
    references: list[list[str]] = [[] for _ in range(len(split.images))]
    for image, text in zip(split.image_index.tolist(), known_words(split.captions, data)):
        references[image].append(text)
    return references


def known_words(captions: Tensor, data: CaptionData) -> list[str]:
    """Rows of word indices as text, without ``<UNK>``."""
    return [text.replace("<UNK>", "") for text in decode_captions(captions, data.idx_to_word)]


# ------------------------------------------------------------------------------ the feature cache


@torch.no_grad()
def encode_all(
    encoder: ImageEncoder,
    images: Tensor,
    feature_pass: FeaturePass | None = None,
    stem: str | Path | None = None,
    identity: str = "",
    name: str = "",
) -> Tensor:
    """The features of all images; with a stem, they are computed once, and every later call memory-maps the file.

    Several processes share the work; the first one on each machine writes the file.
    Args: encoder, in eval mode; images, uint8 (M, 3, S, S); stem, the start of the cache file's name, to which the
        name of the encoder and a key are added; the key changes with identity, weights, image size and precision;
        identity, a string that changes with the images; name, of the split, for the progress bar.
    Returns: float16 (M, C, grid_h, grid_w); if memory-mapped, only the pages in use take memory.
    Raises: InputError if a feature does not fit into float16.
    """
    feature_pass = feature_pass or FeaturePass()
    device = encoder.mean.device
    shape = (len(images), *encoder(images[:1].to(device)).shape[1:])
    encode = partial(_encode_batch, encoder, shape[1:], feature_pass.precision)
    progress = partial(tqdm, desc=f"{name} features", unit="batch", disable=not feature_pass.progress, leave=False)
    if stem is None:
        features = np.empty(shape, np.float16)
        _fill(features, images, encode, feature_pass.batch_size, progress)
        return torch.from_numpy(features)
    path = _cache_path(encoder, stem, f"{identity} {shape} {encoder.image_size} {feature_pass.precision}")
    cached = _open_cache(path, shape)
    if distributed.any_rank(cached is None):
        if distributed.is_local_rank_0():
            with replacing(path) as unfinished:
                mapped = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
                if hasattr(os, "posix_fallocate"):  # if the disk is full, fail here and don't crash later
                    with open(unfinished, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, unfinished.stat().st_size)
                _fill(mapped, images, encode, feature_pass.batch_size, progress)
                mapped.flush()
                del mapped  # Windows can't rename an open file
        else:
            _fill(None, images, encode, feature_pass.batch_size, progress)
        distributed.any_rank(False)  # wait until the file is there
        cached = _open_cache(path, shape)
    if cached is None:
        raise RunFailed(f"{path} was changed by another program while it was used")
    return read_only(cached)


def _open_cache(path, shape):
    """Map the cached features into memory; None if there are none, or, with a warning, if the file is damaged."""
    if not path.exists():
        return None
    try:
        open_file(path).close()
        cached = np.load(path, mmap_mode="r")
        if not isinstance(cached, np.ndarray) or (cached.shape, cached.dtype) != (shape, np.float16):
            raise ValueError("it holds something else")
    except (OSError, ValueError, EOFError) as error:
        reason = printable(str(error) or "it is empty")[:200]
        warnings.warn(f"{path} can't be used ({reason}): the features are computed again", stacklevel=2)
        return None
    return cached


def _cache_path(encoder, stem, identity):
    key = hashlib.sha256(identity.encode())
    for name, tensor in encoder.state_dict().items():
        key.update(f"{name} {tensor.dtype}".encode())
        key.update(tensor.cpu().contiguous().numpy())
    return Path(f"{stem}.{encoder.name}-{key.hexdigest()[:16]}.npy")


def _encode_batch(encoder, shape, precision, batch):
    """The features of a batch, float16; an empty tensor if no images are left for this process."""
    if not len(batch):
        return torch.zeros(0, *shape, dtype=torch.float16)
    device = encoder.mean.device
    with autocast(device, precision):
        encoded = encoder(batch.to(device))
    return encoded.to(device="cpu", dtype=torch.float16)


def _fill(
    features: np.ndarray | None,
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Write the features of all images into an array; with None, only do this process's share of the work."""
    for start in progress(range(0, len(images), batch_size * distributed.world_size())):
        first = start + batch_size * distributed.rank()
        mine = encode(images[first : first + batch_size])
        padded = torch.cat([mine, mine.new_zeros(batch_size - len(mine), *mine.shape[1:])])
        gathered = distributed.all_gather_rows(padded)[: len(images) - start]
        if not gathered.isfinite().all():
            raise InputError("the encoder gives features above 65504, the largest number in float16")
        if features is not None:
            features[start : start + len(gathered)] = gathered.numpy()
