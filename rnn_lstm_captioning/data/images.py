"""From a picture file to the tensor that the encoder sees: one way, for training and for use."""

import warnings
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def load_image(path, size):
    """The picture at a path, upright, in RGB, squashed to a square: uint8 (3, size, size).

    Any mode and size; the EXIF orientation is applied, transparency is laid on white, the first
    frame of an animation is taken. Raises: OSError or ValueError for what Pillow cannot decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                image.draft("RGB", (2 * size, 2 * size))  # JPEG: decode at a fraction of the size, much faster
                image = _to_rgb(ImageOps.exif_transpose(image))
                return pil_to_tensor(image.resize((size, size), Image.Resampling.BILINEAR))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"it is too large: {error}") from error
        except (SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:  # Pillow, on broken files
            raise ValueError(f"it is damaged: {error}") from error


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: convert("RGB") would clip at 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def load_images(paths, size):
    """Load the pictures that can be read.

    Returns: images uint8 (M, 3, size, size), the M paths, and a list of (path, reason) of the rest.
    """
    images, loaded, failed = [], [], []
    for path in paths:
        try:
            images.append(load_image(path, size))
            loaded.append(path)
        except FileNotFoundError:
            failed.append((path, "there is no such file"))
        except (OSError, ValueError) as error:
            failed.append((path, str(error)))
    return torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8), loaded, failed


def find_images(paths):
    """The picture files among paths; a folder stands for all pictures in it, in order of name."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    return found
