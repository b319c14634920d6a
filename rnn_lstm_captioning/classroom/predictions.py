"""What the web page shows of an image and its captions: predictions, explanations, and their HTML."""

import html
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ..data.images import load_image, open_image
from ..data.vocabulary import SPECIAL_TOKENS
from ..evaluation.captions import Caption, ImageCaptioner
from ..evaluation.figures import attention_overlay, image_address
from ..model.captioner import evaluating
from ..model.decoding import Decoding
from .explaining import Explanation
from .interventions import Intervened, Intervention, gate_names

END = SPECIAL_TOKENS[2]
MAX_WORDS, TOP = 20, 6
WHOLE = "nothing"  # is changed in the model
SIDE = 480  # pixels, at most, of an image on the page
ONE_AT_A_TIME = threading.Lock()  # a decoded photo can take half a gigabyte


class OpenedImage(NamedTuple):
    """An image, as the page stores it."""

    shown: torch.Tensor  # uint8 (3, height, width), its longer side at most SIDE
    features: list[torch.Tensor]  # of each captioner, (1, C, grid_h, grid_w)


class Prediction(NamedTuple):
    """A caption and its alternatives."""

    caption: Caption
    next_words: list[list[tuple[str, float]]]  # len(caption.words) + 1 lists of (word, probability)
    broken: bool = False  # a part of the model was changed


# --------------------------------------------------------------------------- images and captions


def open_file(path: str | Path, captioners: Sequence[ImageCaptioner]) -> OpenedImage:
    """Open the image in a file. Raises: OSError or ValueError if it can't be read."""
    sizes = {captioner.stored_size for captioner in captioners}
    with ONE_AT_A_TIME:
        shown = open_image(path, 2 * max(SIDE, *sizes))
        images = {size: load_image(shown, size)[None] for size in sizes}
        shown.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    features = []
    for captioner in captioners:
        with evaluating(captioner.model):
            features.append(captioner.model.encode(images[captioner.stored_size].to(captioner.device)))
    return OpenedImage(pil_to_tensor(shown), features)


def predict(
    captioner: ImageCaptioner,
    features: torch.Tensor,
    beam: float,
    temperature: float,
    beginning: Sequence[str] = (),
    broken: str = WHOLE,
) -> Prediction:
    """A caption with this beginning: sampled if the temperature is above 0, else from beam search.

    Args: broken, what is changed, a name of :func:`interventions`; a model that has no such part stays as it is.
    """
    found_with = {"temperature": temperature} if temperature > 0 else {"beam": int(beam)}
    decoding = Decoding.recommended(max_length=MAX_WORDS, **found_with)
    change = interventions(captioner).get(broken)
    using = Intervened(captioner.model, change) if change else None
    caption = captioner.caption_features(features, decoding, beginning=beginning, using=using)[0]
    return Prediction(caption, captioner.next_words(features, caption.words, TOP), bool(change))


def interventions(captioner: ImageCaptioner) -> dict[str, Intervention]:
    """What the page can change in a model: name -> :class:`Intervention`."""
    found = {
        f"{name} = {value}": Intervention(gates={name: value})
        for name in gate_names(captioner.model)
        for value in (0, 1)
    }
    if captioner.model.cell.uses_grid:
        found["attention uniform"] = Intervention(attention="uniform")
    found["hidden state erased before word 5"] = Intervention(erase=(0, 5))
    return found


def draw_figure(
    opened: OpenedImage, prediction: Prediction, place: int | None = None, found: Explanation | None = None
) -> str:
    """HTML of the image below the caption. For the word at a place: three images, bright where the model looked, and at
    the regions that the word needs, by gradient and by occlusion. Args: found, the explanation of the caption."""
    caption = prediction.caption
    text = html.escape(caption.text) or "(no words)"
    below = f"probability {_chance(caption.log_prob)}"
    if caption.sure is not None:
        below += f"; {_percent(caption.sure)} sure"
    if caption.familiar is False:
        below += "; the image is not like those that the model was trained on"
    if prediction.broken:
        below += "; a part of the model is changed"
    shown = f'<img src="{image_address(opened.shown)}" alt="the image">'
    if place is not None and found is not None:
        word = html.escape(_readable((*caption.words, END)[place]))
        below = f"where “{word}” came from"
        if found.attention is None:
            below += ": this model read the whole image once, before the first word: it has no attention to show"
        if prediction.broken:
            below += " (gradient and occlusion are those of the unchanged model)"
        shown, ways = (
            "",
            {
                f"bright where the model looked for “{word}”": ("attention", caption.attention),
                f"bright at the regions that speak for “{word}”, by the gradient": ("gradient", found.region_gradient),
                f"bright at the regions without which “{word}” is less probable": ("occlusion", found.region_occlusion),
            },
        )
        for description, (way, values) in ways.items():
            if values is not None and place < len(values):
                picture = image_address(attention_overlay(opened.shown, values[place].clamp(min=0)))
                shown += f'<span>{way}<img src="{picture}" alt="{description}"></span>'
        shown = f'<div class="ways">{shown}</div>'
    return f'<figure><figcaption aria-live="polite"><b>{text}</b>{below}</figcaption>{shown}</figure>'


def thumbnail(path: str | Path) -> str:
    """HTML of a small image, with the file's name for people who can't see it."""
    image = open_image(path, 200)
    image.thumbnail((100, 100))
    return f'<img src="{image_address(pil_to_tensor(image))}" alt="{html.escape(Path(path).stem)}">'


def words_to_choose(prediction: Prediction) -> list[tuple[str, int]]:
    """The words of the caption, and its end, as the choices of a radio button."""
    words = prediction.caption.words
    places = [*words, END] if len(words) < MAX_WORDS else words
    return [(_readable(word), place) for place, word in enumerate(places)]


def alternatives(prediction: Prediction, place: int) -> tuple[list[tuple[str, str]], str]:
    """The probable words at a position, as the choices of a radio button, and the word that is there."""
    choices = [(f"{_readable(word)}  {_percent(prob)}", word) for word, prob in prediction.next_words[place]]
    here = (*prediction.caption.words, END)[place]
    if here not in (word for _, word in choices):
        choices.append((_readable(here), here))
    return choices, here


def _readable(word):
    return "(end)" if word == END else word


def _chance(log_prob):
    return f"1 in {math.exp(-log_prob):,.0f}" if log_prob > -13.8 else "under one in a million"


def _percent(share):
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.1f} %" if share > 0.001 else "under 0.1 %"
