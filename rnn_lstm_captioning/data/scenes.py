"""The built-in scenes: small images that this module draws, with their captions.

They make a first run possible without a download. Each image shows one or two coloured shapes on a plain
background. The captions contain what a captioner must learn: nouns, adjectives, sizes, positions and
relations. Every image has five true captions; training uses two of them. The same seed gives the same
images.
"""

import math
import random
from collections.abc import Callable, Iterable

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import pil_to_tensor

from .vocabulary import build_vocabulary, encode_captions, tokenize

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 140, 60),
    "blue": (40, 80, 200),
    "yellow": (240, 210, 40),
    "purple": (140, 60, 170),
    "orange": (250, 130, 20),
}
BACKGROUNDS = {"white": (245, 245, 245), "black": (20, 20, 20), "gray": (128, 128, 128), "pink": (250, 190, 205)}
SHAPES = ["circle", "square", "triangle", "star", "cross"]
SIZES = {"small": (9, 11), "big": (17, 20)}  # radius in pixels, in an image of 112 pixels
PLACES = {"top left": (-1, -1), "top right": (1, -1), "middle": (0, 0), "bottom left": (-1, 1), "bottom right": (1, 1)}
RELATIONS = {  # the direction of the first of two objects, seen from the second
    (-1, 0): "left of",
    (1, 0): "right of",
    (0, -1): "above",
    (0, 1): "below",
}
SIDE = 112  # pixels
SMOOTH = 3  # images are drawn this many times larger, then scaled down: smooth edges


def make_scenes(
    num_train: int = 6000, num_val: int = 500, seed: int = 0, progress: Callable[[Iterable], Iterable] = iter
) -> dict:
    """The data set as a dict in the format of ``data.caption_file``.

    Args: num_train and num_val, numbers of images; seed; progress, a function that wraps the loop
        over images, such as tqdm.
    Returns: dict with images uint8 (M, 3, 112, 112), two captions for each training image, and five
        for each validation image.
    """
    chance = random.Random(seed)
    scenes = [draw_scene(chance) for _ in progress(range(num_train + num_val))]
    for k in range(num_train):
        picture, texts = scenes[k]
        scenes[k] = picture, chance.sample(texts, 2)
    words, _ = build_vocabulary(tokenize(text) for _, texts in scenes for text in texts)
    word_to_idx = {word: index for index, word in enumerate(words)}
    data: dict = {"vocab": {"idx_to_token": words, "token_to_idx": word_to_idx}}
    for split, part in (("train", scenes[:num_train]), ("val", scenes[num_train:])):
        captions = [tokenize(text) for _, texts in part for text in texts]
        data[f"{split}_images"] = torch.stack([picture for picture, _ in part])
        data[f"{split}_captions"] = encode_captions(captions, word_to_idx)
        data[f"{split}_image_index"] = torch.arange(len(part)).repeat_interleave(2 if split == "train" else 5)
        data[f"{split}_references"] = [texts for _, texts in part]
        data[f"{split}_image_names"] = [f"scene {split} {i}" for i in range(len(part))]
    return data


def draw_scene(chance: random.Random) -> tuple[torch.Tensor, list[str]]:
    """One image, uint8 (3, 112, 112), and its five captions."""
    ground = chance.choice(list(BACKGROUNDS))
    canvas = Image.new("RGB", (SIDE * SMOOTH, SIDE * SMOOTH), BACKGROUNDS[ground])
    draw = ImageDraw.Draw(canvas)
    if chance.random() < 0.4:
        size, colour, shape, thing = _choose_object(chance, chance.choice(list(SIZES)))
        place = chance.choice(list(PLACES))
        middle = [SIDE / 2 + step * 28 + chance.uniform(-6, 6) for step in PLACES[place]]
        _draw_object(draw, chance, size, colour, shape, middle)
        where = "in the middle" if place == "middle" else f"in the {place} corner"
        captions = [
            f"a {thing} {where}",
            f"a {thing} {where} on a {ground} background",
            f"there is a {thing} on a {ground} background",
            f"{_a(colour)} {shape} on a {ground} background",
            f"a {ground} picture with a {thing} {where}",
        ]
    else:
        direction = chance.choice(list(RELATIONS))
        where = RELATIONS[direction]
        objects = [_choose_object(chance, size) for size in ("big", "small")]  # the big one comes first
        (*_, colour, shape, thing), (*_, other_colour, other_shape, other) = objects
        for sign, (size, its_colour, its_shape, _) in zip((1, -1), objects):
            # apart along the axis of the relation; along the other axis, a random shift
            middle = [
                SIDE / 2 + sign * step * 27 + chance.uniform(-4, 4) + (0 if step else chance.uniform(-12, 12))
                for step in direction
            ]
            _draw_object(draw, chance, size, its_colour, its_shape, middle)
        captions = [
            f"a {thing} {where} a {other}",
            f"a {thing} {where} a {other} on a {ground} background",
            f"a {ground} picture with a {thing} {where} a {other}",
            f"{_a(colour)} {shape} and {_a(other_colour)} {other_shape} on a {ground} background",
            f"there is {_a(colour)} {shape} {where} {_a(other_colour)} {other_shape}",
        ]
    picture = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    return pil_to_tensor(picture), captions


def _choose_object(chance, size):
    colour, shape = chance.choice(list(COLOURS)), chance.choice(SHAPES)
    return size, colour, shape, f"{size} {colour} {shape}"


def _a(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _draw_object(draw, chance, size, colour, shape, middle):
    x, y = (value * SMOOTH for value in middle)
    r = chance.uniform(*SIZES[size]) * SMOOTH
    fill = tuple(min(255, max(0, channel + chance.randint(-12, 12))) for channel in COLOURS[colour])
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif shape == "cross":
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
    else:
        corners = 3 if shape == "triangle" else 10
        radius = [r * 1.15] if shape == "triangle" else [r * 1.15, r * 0.5]
        angles = [math.tau * k / corners - math.tau / 4 for k in range(corners)]
        draw.polygon(
            [
                (x + radius[k % len(radius)] * math.cos(a), y + radius[k % len(radius)] * math.sin(a))
                for k, a in enumerate(angles)
            ],
            fill=fill,
        )
