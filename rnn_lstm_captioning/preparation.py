"""From a caption file's split to the pairs that a captioner is trained or evaluated on."""

import os
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .encoder import encode_all
from .layers import evaluating
from .pairs import Pairs
from .storage import cache_folder
from .vocabulary import decode_captions


def prepare_pairs(
    captioner, data, name, in_loop=False, augment=False, together=False, *, first=None, device="cpu",
    precision="fp32", cache=None, quiet=False,
):  # fmt: skip
    """A split's pairs: with its images if the encoder is in the loop, else with their cached features.

    Args: captioner; data, a :class:`CaptionData`; name, of the split; augment and together, see
        :class:`Pairs`; first, how many of its captions to take (all for None); cache, the folder for the features
        (beside the data where that can be written, for None); quiet, no progress bar.
    """
    split = data.splits[name].first(first)
    if in_loop:
        together = together or not augment
        return Pairs(split.captions, split.image_index, images=split.images, augment=augment, together=together)
    stem = None  # the features of an encoder that learns are not worth keeping
    if captioner.image_encoder.frozen:
        beside = Path(data.source).parent
        keep_beside = data.source != "scenes" and os.access(beside, os.W_OK)
        stem = (cache or (beside if keep_beside else cache_folder())) / f"{Path(data.source).name}.{name}"
    progress = partial(tqdm, desc=f"{name} features", unit="batch", disable=quiet, leave=False)
    features = encode_all(
        captioner.image_encoder, split.images, stem, data.identity, device, precision, progress=progress
    )  # fmt: skip
    if captioner.cell_type != "attn":  # the grid is not needed again: pool once, not in every batch
        features = pool(features)
    return Pairs(split.captions, split.image_index, features=features, together=together)


def pool(features):
    """The mean over the grid: float16 (M, C, grid_h, grid_w) -> (M, C, 1, 1), in parts that fit into memory."""
    return torch.cat([part.float().mean((2, 3), keepdim=True).half() for part in features.split(1024)])


def standardize_features(captioner, train, weights):
    """Take the features' mean and variance from the training split.

    Not those of a random CNN that is about to learn: its own BatchNorm keeps its features in range.
    """
    if train.features is not None:
        captioner.standardize(train.features)
    elif captioner.image_encoder.frozen or weights != "none":
        with evaluating(captioner):
            images = train.images[:: 1 + len(train.images) // 256]
            features = [captioner.encode(part.to(captioner.feature_mean.device)) for part in images.split(32)]
            captioner.standardize(torch.cat(features))


def autocast(device, precision):
    """A function that returns the context in which a loss is computed at a precision."""
    return partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def references_of(split, data):
    """The raw references of every image; where the file has none, its captions, as far as the vocabulary knows them."""
    if split.references:
        return split.references
    references = [[] for _ in range(len(split.images))]
    for image, text in zip(split.image_index.tolist(), known_words(split.captions, data)):
        references[image].append(text)
    return references


def known_words(captions, data):
    """Rows of word indices as text, without ``<UNK>``."""
    return [text.replace("<UNK>", "") for text in decode_captions(captions, data.idx_to_token)]
