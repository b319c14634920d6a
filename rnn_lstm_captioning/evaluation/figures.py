"""Figures: the loss curve, a captioned image, and where the attention looks. They need no screen."""

import base64
import functools
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..storage import replacing
from ..text import printable

BAND = 25  # pixels above an image for its word
# matplotlib's own font has no Asian scripts; from these, the installed ones are added
MORE_FONTS = """Noto Sans CJK SC,Noto Sans CJK JP,WenQuanYi Micro Hei,Microsoft YaHei,Malgun Gothic,Hiragino Sans,
    PingFang SC,Apple SD Gothic Neo,Noto Sans,Noto Sans Arabic,Noto Sans Devanagari,Noto Sans Thai,Noto Sans Hebrew,
    Noto Sans Bengali,Noto Sans Tamil,Nirmala UI,Leelawadee UI,Arial Unicode MS,FreeSans,Unifont"""
_installed = set(font_manager.get_font_names())
FONTS = ["DejaVu Sans", *(name for name in map(str.strip, MORE_FONTS.split(",")) if name in _installed)]
in_all_fonts = matplotlib.rc_context({"font.family": FONTS, "text.usetex": False})  # a decorator


@in_all_fonts
def save_loss_curve(path: str | Path, history: Sequence[dict], title: str) -> None:
    """The loss per caption on both splits over the epochs, as PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats per caption)", xlim=(0, history[-1]["epoch"] + 1))
    epochs = [row["epoch"] for row in history]
    for split in ("train", "val"):
        axes.plot(epochs, [row[f"{split}_loss"] for row in history], marker="o", markersize=3, label=split)
    axes.set_title(_lines(title, 70), parse_math=False)  # a file name may contain $ signs: cost_$5_$6.pt
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    _save_figure(figure, path)


@in_all_fonts
def save_captioned_image(path: str | Path, image: Tensor, caption: str, references: Sequence[str]) -> None:
    """An image (uint8 (3, S, S)) with its generated caption and its references, as PNG."""
    title, below = _lines(caption or "(no words)", 44), "\n".join(_lines(text, 64) for text in references)
    figure = Figure(figsize=(5, 5.2 + 0.25 * title.count("\n") + 0.2 * len(below.splitlines())), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image.permute(1, 2, 0).numpy())
    axes.set_axis_off()
    axes.set_title(title, fontsize=13, parse_math=False)
    if below:
        figure.supxlabel(below, fontsize=9, color="0.35", parse_math=False)
    _save_figure(figure, path)


@in_all_fonts
def save_contact_sheet(path: str | Path, images: Sequence[Tensor], texts: Sequence[str], columns: int = 4) -> None:
    """Images (uint8 (3, S, S) each) in rows, each above its text, as PNG."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.6 * columns, 3.2 * rows), layout="constrained")
    for axes, image, text in zip(figure.subplots(rows, columns, squeeze=False).flat, images, texts):
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(_lines(text, 32), y=-0.06, va="top", fontsize=8, parse_math=False)
    for axes in figure.axes:
        axes.set_axis_off()
    _save_figure(figure, path)


def attention_overlay(image: Tensor, attn_weights: Tensor) -> Tensor:
    """An image that is bright where the weights are large and dark elsewhere.

    Args: image uint8 (3, height, width); attn_weights (grid_h, grid_w), summing to 1.
    Returns: uint8 (3, height, width).
    """
    height, width = image.shape[1:]
    weights = attn_weights.detach().cpu().double().numpy()
    region = height / weights.shape[0], width / weights.shape[1]  # pixels
    smooth = gaussian_filter(zoom(weights, region, order=1, mode="nearest", grid_mode=True), [s / 3 for s in region])
    smooth = smooth / max(smooth.max(), 1e-12)
    glow = np.array([255, 170, 0]).reshape(3, 1, 1) * 0.35 * smooth
    blended = image.cpu().numpy() * (0.25 + 0.65 * smooth) + glow
    return torch.from_numpy(blended.round().clip(0, 255).astype(np.uint8))


def attention_visualizer(img: Tensor, attn_weights: Tensor, token: str) -> Tensor:
    """One word and where the model looked for it.

    Args: img uint8 (3, height, width); attn_weights (grid_h, grid_w); token, the word.
    Returns: uint8 (3, height + 25, width): the word in a band above the image.
    """
    height, width = img.shape[1:]
    canvas = Image.new("RGB", (width, height + BAND), "white")
    canvas.paste(Image.fromarray(attention_overlay(img, attn_weights).permute(1, 2, 0).numpy()), (0, BAND))
    token = printable(token)[:60]
    font = ImageFont.truetype(_font_with(token), 16)
    if font.getlength(token) > width - 4:
        font = font.font_variant(size=max(1, int(16 * (width - 4) / font.getlength(token))))
    ImageDraw.Draw(canvas).text((width / 2, BAND / 2), token, fill="black", font=font, anchor="mm")
    return pil_to_tensor(canvas)


def attention_frames(image: Tensor, words: Sequence[str], attn_weights: Tensor, side: int = 224) -> list[Tensor]:
    """A list with the result of :func:`attention_visualizer` for each word.

    Args: image uint8 (3, S, S); words, a list of T strings; attn_weights (T or more, grid_h, grid_w).
    """
    image = _enlarged(image, side)
    return [attention_visualizer(image, weights, word) for word, weights in zip(words, attn_weights)]


def attention_sheet(image: Tensor, frames: Sequence[Tensor], columns: int = 6) -> Tensor:
    """The image and its :func:`attention_frames` side by side, in rows: uint8 (3, height, width)."""
    plain = torch.full_like(frames[0], 255)
    plain[:, BAND:] = _enlarged(image, frames[0].shape[2])
    columns = min(len(frames) + 1, columns)
    tiles = [plain, *frames]
    tiles += [torch.full_like(plain, 255)] * (-len(tiles) % columns)
    return torch.cat([torch.cat(tiles[k : k + columns], dim=2) for k in range(0, len(tiles), columns)], dim=1)


def save_attention(stem: str | Path, image: Tensor, words: Sequence[str], attn_weights: Tensor) -> None:
    """Where the model looked for each word: ``stem_attention.png``, all words side by side, and
    ``stem_attention.gif``, one word after the other. Arguments: see :func:`attention_frames`."""
    frames = attention_frames(image, words, attn_weights)
    if not frames:
        return
    with replacing(f"{stem}_attention.png") as unfinished:
        _as_pil(attention_sheet(image, frames)).save(unfinished)
    first, *rest = map(_as_pil, frames)
    with replacing(f"{stem}_attention.gif") as unfinished:
        first.save(unfinished, save_all=True, append_images=rest, duration=700, loop=0)


def image_address(image: Tensor, kind: str = "jpeg") -> str:
    """An image, uint8 (3, height, width), as an address that holds the whole file: for a page in one file. Args: kind,
    "jpeg" or "png"."""
    buffer = io.BytesIO()
    _as_pil(image).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _lines(text, width):
    """Text for a figure: its beginning, if it is very long, in lines of at most this width."""
    return fill(printable(shorten(text, 400, placeholder=" ...") if len(text) > 400 else text), width)


def _enlarged(image, side):
    image = torch.nn.functional.interpolate(image[None].float(), (side, side), mode="bicubic", antialias=True)
    return image[0].round().clamp(0, 255).byte()


def _as_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@functools.cache
def _font_with(text):
    """The file of the first font that has all letters of a text, or of the first one."""
    files = [font_manager.findfont(name) for name in FONTS]
    has_all = (set(map(ord, text)) <= font_manager.get_font(file).get_charmap().keys() for file in files)
    return next((file for file, found in zip(files, has_all) if found), files[0])


@in_all_fonts
def write_figure(figure: Figure, path: str | Path, **options: Any) -> None:
    """Write a figure as PNG; options are those of ``savefig``. A warning says if letters are in no font."""
    with replacing(path) as unfinished, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(unfinished, **options)
    if any("missing from" in str(warning.message) for warning in caught):
        warnings.warn(f"{path}: no installed font has some of the letters; they are drawn as boxes", stacklevel=2)


def _save_figure(figure, path):
    write_figure(figure, path, dpi=120, bbox_inches="tight", pad_inches=0.1)
