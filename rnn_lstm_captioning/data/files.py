"""The caption file (.pt): reading, checking and downloading it.

The format is that of the course's ``coco.pt``: ``train_images`` uint8 (M, 3, S, S),
``train_captions`` int64 (R, L), the same for ``val``, and ``vocab``. Optional keys: ``*_image_index``
int64 (R,), which image a caption describes; ``*_references``, a list of M lists of raw captions;
``*_image_names``, a list of M strings; and a ``test`` split.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch

from ..errors import InputError
from ..storage import load
from ..vocabulary import NULL, SPECIAL_TOKENS, START
from .scenes import make_scenes

COCO_URL = "http://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt"
COCO_BYTES = 396_583_632
COCO_PATH = Path("datasets/coco.pt")
SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """M images and R captions: image ``image_index[r]`` is described by ``captions[r]``."""

    images: torch.Tensor  # uint8 (M, 3, S, S)
    captions: torch.Tensor  # int64 (R, L)
    image_index: torch.Tensor  # int64 (R,)
    references: list | None  # M lists of raw captions
    image_names: list | None  # M names

    def __len__(self):
        return len(self.captions)

    def first(self, count):
        """The first ``count`` captions (all for None), with the images that they describe."""
        if count is None or count >= len(self):
            return self
        images = int(self.image_index[:count].max()) + 1
        return Split(
            self.images[:images],
            self.captions[:count],
            self.image_index[:count],
            self.references and self.references[:images],
            self.image_names and self.image_names[:images],
        )


@dataclass
class CaptionData:
    """What a caption file holds. ``source`` is its path, or "scenes"; ``identity`` changes with its contents."""

    source: str
    identity: str
    splits: dict  # name -> Split
    idx_to_token: list
    token_to_idx: dict


def load_captions(source):
    """The caption file at a path, memory-mapped, or the built-in scenes for "scenes".

    Returns: :class:`CaptionData`. Raises: InputError that says what is wrong with the file.
    """
    if str(source) == "scenes":
        scenes = make_scenes()
        return check_captions(scenes, "scenes", hashlib.sha256(scenes["train_images"].numpy()).hexdigest())
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: there is no such caption file; --data FILE names another, --data scenes needs none")
    try:
        data = load(path, mmap=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a caption file that can be read safely: {error}; "
            "build one with python -m rnn_lstm_captioning.data.build, or fetch coco.pt with --download"
        ) from error
    status = path.stat()  # a hash of the contents would read gigabytes at every start
    return check_captions(data, str(path), f"{status.st_size} bytes of {status.st_mtime_ns}")


def check_captions(data, source, identity=""):
    """Check a caption file's dict, and wrap it. Raises InputError that names the first fault."""

    def demand(condition, what):
        if not condition:
            raise InputError(f"{source} is not a valid caption file: {what}")

    demand(isinstance(data, dict), f"it holds a {type(data).__name__}, not a dict")
    idx_to_token, token_to_idx = _check_vocabulary(data.get("vocab"), demand)
    splits = {}
    for name in SPLITS:
        if name == "test" and "test_captions" not in data and "test_images" not in data:
            continue
        for key in (f"{name}_images", f"{name}_captions"):
            demand(isinstance(data.get(key), torch.Tensor), f"{key} is missing, or not a tensor")
        images, captions = data[f"{name}_images"], data[f"{name}_captions"]
        demand(images.dtype == torch.uint8, f"{name}_images has dtype {images.dtype}, wanted torch.uint8")
        shape = tuple(images.shape)
        square = images.dim() == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
        demand(square, f"{name}_images has shape {shape}, wanted (M, 3, S, S)")
        demand(captions.dtype == torch.int64, f"{name}_captions has dtype {captions.dtype}, wanted torch.int64")
        shape = tuple(captions.shape)
        demand(captions.dim() == 2 and shape[1] >= 2, f"{name}_captions has shape {shape}, wanted (R, L)")
        demand(min(len(images), len(captions)) > 0, f"{name} has no images or no captions")
        low, high = captions.min().item(), captions.max().item()
        demand(
            low >= 0 and high < len(idx_to_token),
            f"{name}_captions has word indices from {low} to {high}, but the vocabulary has {len(idx_to_token)} words",
        )
        unstarted = (captions[:, 0] != START).nonzero()
        demand(not len(unstarted), f"{name}_captions row {unstarted[:1].tolist()} does not begin with <START>")
        wordless = (captions[:, 1] == NULL).nonzero()
        demand(not len(wordless), f"{name}_captions row {wordless[:1].tolist()} has nothing after <START>")
        image_index = _check_image_index(data.get(f"{name}_image_index"), name, len(images), len(captions), demand)
        lists = {}
        for key in ("references", "image_names"):
            lists[key] = data.get(f"{name}_{key}")
            demand(
                lists[key] is None or (isinstance(lists[key], list) and len(lists[key]) == len(images)),
                f"{name}_{key} is not a list with one entry for each of the {len(images)} images",
            )
        texts = lists["references"] or []
        demand(
            all(isinstance(of_image, list) and all(isinstance(text, str) for text in of_image) for of_image in texts),
            f"{name}_references is not a list of lists of strings",
        )
        splits[name] = Split(images, captions, image_index, **lists)
    return CaptionData(source, identity, splits, idx_to_token, token_to_idx)


def _check_vocabulary(vocab, demand):
    demand(isinstance(vocab, dict), "vocab is missing, or not a dict")
    tokens, indices = vocab.get("idx_to_token"), vocab.get("token_to_idx")
    demand(isinstance(tokens, list), "vocab['idx_to_token'] is missing, or not a list")
    demand(isinstance(indices, dict), "vocab['token_to_idx'] is missing, or not a dict")
    demand(
        all(isinstance(token, str) for token in tokens), "vocab['idx_to_token'] holds something that is not a string"
    )
    demand(tokens[:4] == SPECIAL_TOKENS, f"the vocabulary begins with {tokens[:4]}, wanted {SPECIAL_TOKENS}")
    demand(
        len(tokens) == len(indices)
        and all(isinstance(indices.get(token), int) and indices[token] == i for i, token in enumerate(tokens)),
        "vocab['token_to_idx'] is not the inverse of vocab['idx_to_token']",
    )
    return tokens, indices


def _check_image_index(index, name, num_images, num_captions, demand):
    if index is None:
        demand(
            num_images == num_captions,
            f"{name} has {num_images} images and {num_captions} captions, and no {name}_image_index to say which "
            "caption describes which image",
        )
        return torch.arange(num_captions)
    demand(
        isinstance(index, torch.Tensor) and index.dtype == torch.int64 and index.shape == (num_captions,),
        f"{name}_image_index is not an int64 tensor of shape ({num_captions},)",
    )
    low, high = index.min().item(), index.max().item()
    demand(low >= 0 and high < num_images, f"{name}_image_index runs from {low} to {high}, for {num_images} images")
    return index


# ---------------------------------------------------------------------------------- the download


def download(url=COCO_URL, path=COCO_PATH, size=COCO_BYTES, progress=None):
    """Fetch a file, resuming an interrupted download; it appears under its name only when whole.

    Args: url; path, where it goes; size, its length in bytes; progress, called with the bytes of
        each piece as it arrives.
    Raises: InputError if the server cannot be reached or sends something of another size.
    """
    path = Path(path)
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        done = part.stat().st_size if part.exists() else 0
        if done != size:
            with urlopen(Request(url, headers={"Range": f"bytes={done}-"}), timeout=30) as answer:
                resumed = answer.status == 206  # a server that can't resume sends everything
                if progress:
                    progress(done if resumed else 0)
                with open(part, "ab" if resumed else "wb") as file:
                    while piece := answer.read(1 << 20):
                        file.write(piece)
                        if progress:
                            progress(len(piece))
    except (URLError, OSError) as error:
        raise InputError(
            f"{url} could not be downloaded ({error}); what has arrived is kept in {part}, run the command again"
        ) from error
    received = part.stat().st_size
    if received < size:
        raise InputError(f"{url} ended after {received} of {size} bytes; run the command again to go on")
    if received > size:
        part.unlink()
        raise InputError(f"{url} sent {received} bytes, wanted {size}: it is not the expected file")
    os.replace(part, path)
