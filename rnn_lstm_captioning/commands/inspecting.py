"""Look inside a trained captioner: gates, states, words and attention at every step, or gradients back in time.

Writes a figure and a JSON file, or a page that explains captions. (The module is not called inspect, which is a module
of the standard library.)
"""

import random
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..classroom.explained_page import caption_data, live_data, write_page
from ..classroom.looking_inside import draw_gradients, draw_trace, gradient_norms, save_figure, trace
from ..data.images import load_image
from ..data.scenes import draw_scene
from ..errors import InputError
from ..evaluation.captions import ImageCaptioner, load_captioner
from ..files import protecting
from ..model.decoding import Decoding
from .common import say
from .flags import inspect_flags

SCENES = 4  # on a page without images


def main(arguments: Sequence[str] | None = None) -> None:
    args = inspect_flags().parse_args(arguments)
    if max(args.steps, args.max_length) > 1000:
        raise InputError("--steps and --max-length can be at most 1000")
    if args.html is not None and args.gradients:
        raise InputError("give either --html FILE or --gradients")
    if args.html is None and bool(args.image) == args.gradients:
        raise InputError("give either --image PATH or --gradients, or --html FILE")
    if args.html is None and args.image and len(args.checkpoint) + len(args.image) > 2:
        raise InputError(
            "--image takes one checkpoint and one image; --gradients compares several, --html shows several"
        )
    captioners = [load_captioner(path, "cpu") for path in args.checkpoint]
    with protecting([*args.checkpoint, *(args.image or [])]):
        if args.html is not None:
            explain_captions(captioners, args)
        elif args.image:
            look_at_steps(captioners[0], args)
        else:
            look_at_gradients(captioners, args)


def read_image(path: str, size: int) -> Tensor:
    """An image, uint8 (3, size, size). Raises: InputError that names the file."""
    try:
        return load_image(path, size)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def look_at_steps(captioner: ImageCaptioner, args: Namespace) -> None:
    """Write the figure and the JSON file of one caption."""
    (path,) = args.image
    image = read_image(path, captioner.stored_size)
    found = trace(captioner.model, image, args.max_length, args.top)
    stem = args.out / f"{Path(path).stem}_inside"
    save_figure(stem, found, draw_trace(image, found))
    say(f"{path}: {found['caption']}")
    say(f"wrote {stem}.png and {stem}.json")


def look_at_gradients(captioners: Sequence[ImageCaptioner], args: Namespace) -> None:
    """Write the figure and the JSON file of gradients on their way back in time."""
    curves: dict[str, list[float]] = {}
    for path, captioner in zip(args.checkpoint, captioners):
        for name, norms in gradient_norms(captioner.model, args.steps).items():
            curves[f"{path}, {name}" if name in curves else name] = norms
    stem = args.out / "gradients"
    save_figure(stem, curves, draw_gradients(curves))
    back = min(10, args.steps - 1)
    for name, norms in curves.items():
        say(f"{name}: after {back} steps {norms[back] / norms[0]:.2g} of the gradient is left")
    say(f"wrote {stem}.png and {stem}.json")


def explain_captions(captioners: Sequence[ImageCaptioner], args: Namespace) -> None:
    """Write a page that explains the captions of the images, or of built-in scenes, by all captioners."""
    captions, decoding = [], Decoding(max_length=args.max_length)
    for path, captioner in zip(args.checkpoint, captioners):
        if args.image:
            images = [(Path(image).name, read_image(image, captioner.stored_size)) for image in args.image]
        else:
            chance = random.Random(1)  # these scenes are in no data set
            scenes = [Image.fromarray(draw_scene(chance)[0].permute(1, 2, 0).numpy()) for _ in range(SCENES)]
            images = [(f"scene {k + 1}", load_image(scene, captioner.stored_size)) for k, scene in enumerate(scenes)]
        for name, image in images:
            title = f"{name}, {Path(path).stem}" if len(captioners) > 1 else name
            captions.append(caption_data(captioner, image, title, decoding, args.top))
            say(f"{title}: {' '.join(word for word in captions[-1]['words'] if word != '<END>')}")
    live = next((found for captioner in captioners if (found := live_data(captioner))), None)
    write_page(args.html, captions, live)
    say(f"wrote {args.html}" + (": with the captioner itself, to try it on scenes" if live else ""))
