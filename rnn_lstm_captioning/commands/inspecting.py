"""Look inside a trained captioner: gates, states, words and attention at every step, or gradients back in time.

Writes a figure and a JSON file. (The module is not called inspect, which is a module of the standard library.)
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..classroom.looking_inside import draw_gradients, draw_trace, gradient_norms, save_figure, trace
from ..data.images import load_image
from ..errors import InputError
from ..evaluation.captions import ImageCaptioner, load_captioner
from ..files import protecting
from .common import say
from .flags import inspect_flags


def main(arguments: Sequence[str] | None = None) -> None:
    args = inspect_flags().parse_args(arguments)
    if max(args.steps, args.max_length) > 1000:
        raise InputError("--steps and --max-length can be at most 1000")
    if bool(args.image) == args.gradients:
        raise InputError("give either --image PATH or --gradients")
    if args.image and len(args.checkpoint) > 1:
        raise InputError("--image takes one checkpoint; --gradients compares several")
    captioners = [load_captioner(path, "cpu") for path in args.checkpoint]
    with protecting([*args.checkpoint, args.image]):
        look(captioners, args)


def look(captioners: Sequence[ImageCaptioner], args: Namespace) -> None:
    """Write the figure and the JSON file that the flags ask for."""
    if args.image:
        try:
            image = load_image(args.image, captioners[0].stored_size)
        except (OSError, ValueError) as error:
            raise InputError(f"{args.image}: {error}") from error
        found = trace(captioners[0].model, image, args.max_length, args.top)
        stem = args.out / f"{Path(args.image).stem}_inside"
        save_figure(stem, found, draw_trace(image, found))
        say(f"{args.image}: {found['caption']}")
    else:
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
