"""Read, check and download a caption file (.pt).

The format is that of ``coco.pt``, from the course EECS 498: ``train_images`` uint8 (M, 3, S, S), ``train_captions``
int64 (R, L), the same for ``val``, and ``vocab`` = {"idx_to_token": list, "token_to_idx": dict}. A row of captions is
``<START>``, words, ``<END>``, and ``<NULL>`` up to the end. Optional keys: ``*_image_index`` int64 (R,), the image that
each caption describes; ``*_references``, a list of M lists of raw captions; ``*_image_names``, a list of M strings; and
the same keys for a ``test`` split.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch

from ..errors import InputError
from ..storage import fingerprint, load
from .scenes import make_scenes
from .vocabulary import END, LONGEST_WORD, NULL, SPECIAL_TOKENS, START

COCO_URL = "http://web.eecs.umich.edu/~justincj/teaching/eecs498/coco.pt"
COCO_BYTES = 396_583_632
COCO_PATH = Path("datasets/coco.pt")
SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """M images and R captions: ``captions[r]`` describes ``images[image_index[r]]``."""

    images: torch.Tensor  # uint8 (M, 3, S, S)
    captions: torch.Tensor  # int64 (R, L)
    image_index: torch.Tensor  # int64 (R,)
    references: list | None  # M lists of raw captions
    image_names: list | None  # M names

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, count: int | None) -> "Split":
        """The first ``count`` captions (None: all), with the images that they describe."""
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
    """The contents of a caption file. ``source`` is its path, or "scenes"; ``identity`` changes when they change."""

    source: str
    identity: str
    splits: dict[str, Split]
    idx_to_word: list[str]

    @property
    def contents(self) -> str:
        """The part of the identity that depends on what is in the file alone, not on its time or size."""
        return self.identity.split(", ")[-1]

    @property
    def word_to_idx(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.idx_to_word)}


def load_captions(source: str | Path) -> CaptionData:
    """Read the caption file at a path, memory-mapped, or make the built-in scenes for "scenes".

    Returns: :class:`CaptionData`. Raises: InputError that says what is wrong with the file.
    """
    if str(source) == "scenes":
        scenes = make_scenes()
        return check_captions(scenes, "scenes", hashlib.sha256(scenes["train_images"].numpy()).hexdigest())
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"{path}: there is no such caption file; name another file with --data FILE, or use --data scenes"
        )
    try:
        data = load(path, mmap=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a caption file that can be read safely: {error}; "
            "build one with python -m rnn_lstm_captioning build, or fetch coco.pt with --download"
        ) from error
    return check_captions(data, str(path), fingerprint(path))


def check_captions(data: object, source: str, identity: str = "") -> CaptionData:
    """Check the dict of a caption file. Raises: InputError that names the first fault."""

    def demand(condition, what):
        if not condition:
            raise InputError(f"{source} is not a valid caption file: {what}")

    demand(isinstance(data, dict), f"it holds a {type(data).__name__}, not a dict")
    assert isinstance(data, dict)  # for the type checker; demand has checked it
    idx_to_word = _check_vocabulary(data.get("vocab"), demand)
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
            low >= 0 and high < len(idx_to_word),
            f"{name}_captions has word indices from {low} to {high}, but the vocabulary has {len(idx_to_word)} words",
        )
        for faulty, what in _caption_faults(captions):
            demand(not faulty.any(), f"{name}_captions row {faulty.int().argmax()} {what}")
        image_index = _check_image_index(data.get(f"{name}_image_index"), name, len(images), len(captions), demand)
        lists = {key: data.get(f"{name}_{key}") for key in ("references", "image_names")}
        for key, entries in lists.items():
            demand(
                entries is None or (isinstance(entries, list) and len(entries) == len(images)),
                f"{name}_{key} is not a list with one entry for each of the {len(images)} images",
            )
        demand(
            all(isinstance(file_name, str) for file_name in lists["image_names"] or []),
            f"{name}_image_names is not a list of strings",
        )
        texts = lists["references"] or []
        demand(
            all(isinstance(of_image, list) and all(isinstance(text, str) for text in of_image) for of_image in texts),
            f"{name}_references is not a list of lists of strings",
        )
        splits[name] = Split(images, captions, image_index, **lists)
    return CaptionData(source, identity, splits, idx_to_word)


def _caption_faults(captions):
    """Yields (R,) bool, the rows that are not ``<START> words <END> <NULL> ...``, and what is wrong with them."""
    yield captions[:, 0] != START, "does not begin with <START>"
    yield captions[:, 1] == NULL, "has nothing after <START>"
    yield (captions[:, 1:] == START).any(1), "has a second <START>"
    is_end, is_null = captions == END, captions == NULL
    yield is_end.sum(1) > 1, "has more than one <END>"
    yield (is_null[:, :-1] & ~is_null[:, 1:]).any(1), "has <NULL> before its last word; <NULL> only fills up the end"
    after_end = is_end.cumsum(1).bool() & ~is_end
    yield (after_end & ~is_null).any(1), "has words after <END>"
    yield ~is_end.any(1), "has no <END>"


def _check_vocabulary(vocab, demand):
    demand(isinstance(vocab, dict), "vocab is missing, or not a dict")
    tokens, indices = vocab.get("idx_to_token"), vocab.get("token_to_idx")
    demand(isinstance(tokens, list), "vocab['idx_to_token'] is missing, or not a list")
    demand(isinstance(indices, dict), "vocab['token_to_idx'] is missing, or not a dict")
    demand(
        all(isinstance(token, str) for token in tokens), "vocab['idx_to_token'] holds something that is not a string"
    )
    demand(all(len(token) <= LONGEST_WORD for token in tokens), f"it has a word of more than {LONGEST_WORD} letters")
    demand(tokens[:4] == SPECIAL_TOKENS, f"the vocabulary begins with {tokens[:4]}, wanted {SPECIAL_TOKENS}")
    demand(
        len(tokens) == len(indices)
        and all(isinstance(indices.get(token), int) and indices[token] == i for i, token in enumerate(tokens)),
        "vocab['token_to_idx'] is not the inverse of vocab['idx_to_token']",
    )
    return tokens


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
    demand(
        low >= 0 and high < num_images,
        f"{name}_image_index has values from {low} to {high}, but there are {num_images} images",
    )
    return index


# ---------------------------------------------------------------------------------- the download


def download(
    url: str = COCO_URL,
    path: str | Path = COCO_PATH,
    size: int = COCO_BYTES,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Download a file. An interrupted download is resumed; the file gets its name only when it is complete.

    Args: url; path, where it goes; size, its length in bytes; progress, called with the number
        of bytes in each piece that arrives.
    Raises: InputError if the server can't be reached, or sends a file of another size.
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
            f"{url} could not be downloaded ({error}); the part that arrived is kept in {part}; run the command again"
        ) from error
    received = part.stat().st_size
    if received < size:
        raise InputError(f"{url} ended after {received} of {size} bytes; run the command again to fetch the rest")
    if received > size:
        part.unlink()
        raise InputError(f"{url} sent {received} bytes, wanted {size}: it is not the expected file")
    os.replace(part, path)
