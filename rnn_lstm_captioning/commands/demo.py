"""A web page to try captioners, on this machine; it needs Gradio (requirements-demo.txt) and no network."""

import contextlib
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import find_images, load_images
from ..data.scenes import draw_scene
from ..errors import InputError
from ..evaluation.captions import load_captioner
from ..storage import is_running
from .common import say, warn
from .flags import demo_flags

PREFIX = "rnn_lstm_captioning-"  # of the temporary folder; the number of the process follows


def main(arguments: Sequence[str] | None = None) -> None:
    args = demo_flags().parse_args(arguments)
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
    for name in ("SIGTERM", "SIGHUP"):  # end normally, so that the temporary folder is deleted
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    remove_left_folders()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        examples = example_images(args.examples, Path(folder))
        for captioner in captioners:  # the first caption of a process is slow
            captioner.caption(examples[0])
        page = web.make_page(captioners, titles, examples)
        page.queue(default_concurrency_limit=2)
        sweeper = threading.Thread(target=web.delete_old_files, args=(Path(folder), examples), daemon=True)
        sweeper.start()

        @contextlib.asynccontextmanager
        async def outermost(app: Any) -> AsyncIterator[None]:
            app.middleware_stack = web.KnownHosts(app.middleware_stack, args.host)
            yield

        _, url, _ = page.launch(
            server_name=args.host, server_port=args.port, max_file_size=web.UPLOAD_LIMIT, state_session_capacity=500,
            share=False, ssr_mode=False, run_history=False, footer_links=[], css=web.CSS, theme=web.theme(), quiet=True,
            prevent_thread_lock=True, app_kwargs={"lifespan": outermost},
        )  # fmt: skip
        say(f"the page is at {url} (Ctrl-C ends it)")
        page.block_thread()


def remove_left_folders() -> None:
    """Delete the temporary folders of pages that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        if not is_running(folder.name.removeprefix(PREFIX).partition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)


def example_images(paths: Sequence[str] | None, folder: Path) -> list[str]:
    """The paths of the user's own images, or of new scenes, which are in no data set, drawn into a folder."""
    if paths:
        _, found, failed = load_images(find_images(paths)[:24], 16)
        for path, reason in failed:
            warn(f"{path}: {reason}")
        if not found:
            raise InputError(f"there are no images that can be read in {', '.join(paths)}")
        return [str(path) for path in found]
    chance, examples = random.Random("examples"), []
    for k in range(8):
        examples.append(str(folder / f"scene {k + 1}.png"))
        Image.fromarray(draw_scene(chance)[0].permute(1, 2, 0).numpy()).save(examples[-1])
    return examples
