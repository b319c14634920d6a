"""Read image files as tensors for the encoder, in the same way for training and for captioning."""

import glob
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.functional import pil_to_tensor

from ..errors import InputError
from ..files import open_file

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

# what Pillow raises for damaged files, besides OSError and ValueError
DAMAGE = (SyntaxError, EOFError, IndexError, TypeError, OverflowError, struct.error)
TURNS = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ImageSource = str | Path | BinaryIO | Image.Image
LARGEST = 1e9  # bytes, of a file
MANY_PIXELS = 20_000_000
MAX_PIXELS = 90_000_000  # more than most cameras take; a small file can claim billions


def load_image(path: ImageSource, size: int) -> torch.Tensor:
    """The image at a path (or in a binary file, or a PIL image), resized to a square: uint8 (3, size, size).

    Raises: OSError or ValueError if Pillow can't decode it.
    """
    image = open_image(path, 2 * size)
    return pil_to_tensor(image.resize((size, size), Image.Resampling.BILINEAR)).contiguous()


def open_image(path: ImageSource, enough: int) -> Image.Image:
    """The image at a path (or in a binary file, or a PIL image), upright, as a PIL image in RGB.

    It may have any mode and size. The EXIF orientation is applied, a transparent image gets a white background,
    and an animation gives its first frame. A large JPEG may be decoded smaller, with at least ``enough`` pixels
    each way.
    Raises: OSError or ValueError if Pillow can't decode it.
    """
    try:
        with ExitStack() as stack:
            image = path if isinstance(path, Image.Image) else stack.enter_context(_opened(path, stack))
            if min(image.size) < 1 or image.mode == "F":
                raise ValueError("it is empty" if min(image.size) < 1 else "its pixels are floats of an unknown scale")
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it is too large: {image.width}x{image.height} pixels")
            if image is not path:  # decoding a JPEG at a fraction of its size is much faster
                image.draft("RGB", (enough, enough))
            if image.width * image.height > MANY_PIXELS:  # before it is copied for conversions
                return _to_rgb(_reduced(_upright(image), enough))
            return _to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise ValueError("it is not an image of a known kind (JPEG, PNG, WebP, GIF, BMP, TIFF)") from error
    except Image.DecompressionBombError as error:
        raise ValueError("it is far too large") from error
    except DAMAGE as error:
        raise ValueError(f"it is damaged: {error}") from error


def _opened(path, stack):
    """The image in a file, or at a path: this file is closed with the stack."""
    if isinstance(path, str | Path):
        return Image.open(stack.enter_context(open_file(path, LARGEST)))
    if not hasattr(path, "read"):
        raise ValueError(f"an image is a path, a binary file or a PIL image, not a {type(path).__name__}")
    return Image.open(path)


def _upright(image):
    """The image, turned as its EXIF orientation says; a damaged EXIF block is ignored."""
    try:
        orientation = image.getexif().get(0x0112)
    except (*DAMAGE, OSError, ValueError):
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _reduced(image, enough):
    """An image with fewer pixels, but at least ``enough`` each way."""
    factor = max(1, min(image.size) // enough)
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    return image if image.mode in ("1", "P", "PA") else image.reduce(factor)


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: convert("RGB") would clip at 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def try_to_load(path: ImageSource, size: int) -> tuple[torch.Tensor | None, str | None]:
    """:func:`load_image` for any file: (image, None), or (None, what is wrong with the file)."""
    try:
        return load_image(path, size), None
    except FileNotFoundError:
        return None, "there is no such file"
    except (OSError, ValueError) as error:
        return None, str(error)


def load_images(paths: Sequence[Path], size: int) -> tuple[torch.Tensor, list[Path], list[tuple[Path, str | None]]]:
    """Load the images that can be read, several at a time.

    Returns: images uint8 (M, 3, size, size), the M paths, and a list of (path, reason) for the rest.
    """
    images, loaded, failed = [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, (image, reason) in zip(paths, pool.map(lambda path: try_to_load(path, size), paths)):
            if image is None:
                failed.append((path, reason))
            else:
                images.append(image)
                loaded.append(path)
    return torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8), loaded, failed


def random_crops(images: torch.Tensor, size: int) -> torch.Tensor:
    """Augmentation: a random square of ``size`` pixels from every image, mirrored with probability 0.5.

    Args: images (N, 3, S, S), S >= size. Returns: (N, 3, size, size), the same dtype.
    """
    N, S, device = len(images), images.shape[-1], images.device
    corners = torch.randint(0, S - size + 1, (2, N, 1), device=device)
    rows, columns = corners + torch.arange(size, device=device)  # (N, size) each
    mirrored = torch.rand(N, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(N, device=device).view(N, 1, 1)
    return images[picture, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The files that the paths name. A folder names all images in it, in the order of their names; a pattern
    such as ``photos/*.jpg`` names all files that match it."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
        elif not path.exists() and glob.has_magic(str(path)):
            # Path.glob, unlike glob.glob, does not follow links in circles
            pattern = str(path.relative_to(path.anchor))
            try:
                found += sorted(p for p in Path(path.anchor or ".").glob(pattern) if not p.name.startswith("."))
            except (ValueError, NotImplementedError) as error:
                raise InputError(f"{path} is not a valid pattern: {error}") from error
        else:
            found.append(path)
    return found
