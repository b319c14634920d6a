"""A web page to try captioners, on this machine; it needs Gradio (requirements-demo.txt) and no network."""

import os
import random
import signal
import socket
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.images import find_images, load_images
from ..data.scenes import draw_scene
from ..errors import InputError
from ..evaluation.captions import load_captioner
from .common import ArgumentParser, device


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="rnn_lstm_captioning demo", description=__doc__)
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE", help="the captioners, side by side")
    parser.add_argument("--examples", nargs="+", metavar="PATH", help="up to 24 example images (new scenes)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (%(default)s)")
    parser.add_argument("--port", type=port_number, help="(the first free port from 7860)")
    parser.add_argument("--device", type=device, help="cpu, cuda, ...; default: cuda if there is a GPU")
    return parser


def port_number(text: str) -> int:
    """An argument type: a port."""
    if not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text} is not a port, which is a number from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    args = get_args_parser().parse_args(arguments)
    try:
        from ..classroom import page as web  # Gradio takes seconds to import
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
    try:
        socket.create_server((args.host, args.port or 0)).close()
    except OSError as error:
        raise InputError(f"the page can't use {args.host}, port {args.port or 'any'}: {error.strerror}") from error
    captioners = [load_captioner(path, args.device) for path in args.checkpoint]
    titles = [f"## {c.model.cell.title}\n`{path}`" for c, path in zip(captioners, args.checkpoint)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end normally, so that the temporary folder is deleted
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        examples = example_images(args.examples, Path(folder))
        for captioner in captioners:  # the first caption of a process is slow
            captioner.caption(examples[0])
        page = web.make_page(captioners, titles, examples)
        page.queue(default_concurrency_limit=2)
        _, url, _ = page.launch(
            server_name=args.host, server_port=args.port, max_file_size=web.UPLOAD_LIMIT, state_session_capacity=500,
            share=False, ssr_mode=False, run_history=False, footer_links=[], css=web.CSS, theme=web.theme(), quiet=True,
            prevent_thread_lock=True,
        )  # fmt: skip
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def example_images(paths: Sequence[str] | None, folder: Path) -> list[str]:
    """The paths of the user's own images, or of new scenes, which are in no data set, drawn into a folder."""
    if paths:
        _, found, failed = load_images(find_images(paths)[:24], 16)
        for path, reason in failed:
            print(f"{path}: {reason}", file=sys.stderr)
        if not found:
            raise InputError(f"there are no images that can be read in {', '.join(paths)}")
        return [str(path) for path in found]
    chance, examples = random.Random("examples"), []
    for k in range(8):
        examples.append(str(folder / f"scene {k + 1}.png"))
        Image.fromarray(draw_scene(chance)[0].permute(1, 2, 0).numpy()).save(examples[-1])
    return examples
