"""A web page to try captioners: python -m rnn_lstm_captioning.demo --checkpoint FILE [FILE ...]

Drop a picture and read what each model says; choose a word to see where the model looked and what else it might
have said; choose one of those, and the model goes on from there. Needs requirements-demo.txt, and no network.
"""

import base64
import html
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from .command import ArgumentParser, leave, positive, run_command
from .command import device as device_argument
from .data.images import find_images, load_image, open_image
from .data.scenes import draw_scene
from .errors import InputError
from .inference import Caption, load_captioner
from .layers import evaluating
from .visualize import attention_overlay, jpeg_bytes
from .vocabulary import SPECIAL_TOKENS

try:
    import gradio as gr
except ModuleNotFoundError:
    leave(2, "the page needs Gradio: pip install -r requirements-demo.txt")

NAMES = {"rnn": "RNN", "lstm": "LSTM", "attn": "LSTM with attention"}
END = SPECIAL_TOKENS[2]
MAX_WORDS, TOP = 20, 6
SIDE = 480  # pixels, at most, of a picture on the page
UPLOAD_LIMIT = "20mb"
KEPT = 60  # seconds that an uploaded file stays: the browser fetches it again for its preview
SESSION = 3600  # seconds that a visitor's picture is remembered without being used
CSS = """
figure { margin: 0 } figure img { width: 100%; border-radius: 6px } footer { display: none !important }
figcaption b { display: block; font-size: 1.25em; margin: .3em 0 } .problem { font-weight: bold; padding: .5em 0 }
"""


class Picture(NamedTuple):
    """An opened picture."""

    shown: torch.Tensor  # uint8 (3, height, width), its longer side at most SIDE
    features: list  # of each captioner, (1, C, grid_h, grid_w)


class Told(NamedTuple):
    """What a captioner says of a picture."""

    caption: Caption
    next_words: list  # len(caption.tokens) + 1 lists of (word, probability)


# --------------------------------------------------------------------------- pictures and captions


def open_picture(path, captioners):
    """The :class:`Picture` in a file. Raises: OSError or ValueError if there is none."""
    shown = open_image(path, 2 * SIDE)
    shown.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    features = []
    for captioner in captioners:
        with evaluating(captioner.model):
            features.append(captioner.model.encode(load_image(path, captioner.stored_size)[None].to(captioner.device)))
    return Picture(pil_to_tensor(shown), features)


def tell(captioner, features, beam, temperature, beginning=()):
    """A caption that begins with these words: drawn by chance at a temperature above 0, else the best of a beam."""
    chosen = {"temperature": temperature} if temperature > 0 else {"beam": int(beam)}
    caption = captioner.caption_features(features, beginning=beginning, max_length=MAX_WORDS, **chosen)[0]
    return Told(caption, captioner.next_words(features, caption.tokens, TOP))


def draw_figure(picture, told, place):
    """HTML of the picture, lit where the model looked for the word at this place, above the caption."""
    caption, shown = told.caption, picture.shown
    text = html.escape(caption.text) or "(no words)"
    description, below = "the picture", f"probability {_percent(torch.tensor(caption.log_prob).exp().item())}"
    if place is not None and caption.attention is None:
        below = "this model saw the whole picture once, before the first word: it has no attention to show"
    elif place is not None and place < len(caption.tokens):
        shown = attention_overlay(shown, caption.attention[place])
        description = f"the picture, bright where the model looked for “{html.escape(caption.tokens[place])}”"
        below = description.removeprefix("the picture, ")
    data = base64.b64encode(jpeg_bytes(shown)).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{description}">'
        f'<figcaption aria-live="polite"><b>{text}</b>{below}</figcaption></figure>'
    )


def words_to_choose(told):
    """The caption's words, and its end, as a radio button's choices."""
    tokens = told.caption.tokens
    choices = [(word, place) for place, word in enumerate(tokens)]
    return choices + [("(end)", len(tokens))] * (len(tokens) < MAX_WORDS)


def alternatives(told, place):
    """The words that might stand at a place, with their probabilities, as a radio button's choices."""
    choices = [(f"{word if word != END else '(end)'}  {_percent(prob)}", word) for word, prob in told.next_words[place]]
    here = (*told.caption.tokens, END)[place]
    if here not in (word for _, word in choices):
        choices.append((here, here))
    return choices, here


def _percent(share):
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


# ----------------------------------------------------------------------------------------- the page

from gradio.events import Dependency

class Upload(gr.Image):
    """An image component that hands on the uploaded file as it came: opening it, and saying what is
    wrong with it, is open_image's."""

    is_template = True  # in the browser it is a gr.Image

    def preprocess(self, payload):
        return payload and payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Column:
    """What the page shows of one captioner. Its handlers return values for ``outputs``, in this order."""

    def __init__(self, index, captioner, title):
        self.index, self.captioner = index, captioner
        with gr.Column(min_width=260):
            gr.Markdown(title)
            self.told = gr.State(time_to_live=SESSION)
            self.figure = gr.HTML()
            self.words = gr.Radio(
                label="Choose a word", info="where did the model look, what else might it have said?", visible=False
            )
            self.alternatives = gr.Radio(label="In its place", visible=False)
        self.outputs = [self.told, self.figure, self.words, self.alternatives]

    def show(self, picture, told, place=None):
        if told is None:
            hidden = gr.update(visible=False)
            return [None, "", hidden, hidden]
        words = gr.update(choices=words_to_choose(told), value=place, visible=True)
        if place is None:
            return [told, draw_figure(picture, told, place), words, gr.update(visible=False)]
        choices, here = alternatives(told, place)
        named = f"In place of “{here}”" if here != END else "Instead of the end"
        others = gr.update(choices=choices, value=here, visible=True, label=f"{named}, the model would go on from")
        return [told, draw_figure(picture, told, place), words, others]

    def look(self, picture, told, place):
        """A word was chosen."""
        return self.show(picture, told, place)

    def go_on(self, picture, told, place, word, beam, temperature):
        """Another word was chosen: keep what stands before it, and let the model go on after it."""
        beginning = [*told.caption.tokens[:place], word]
        told = tell(self.captioner, picture.features[self.index], beam, temperature, beginning)
        return self.show(picture, told, place)


def make_page(captioners, titles, examples):
    """The page. Args: captioners; titles, Markdown, one each; examples, paths of pictures to choose."""
    with gr.Blocks(title="Image captioning", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT)) as page:
        gr.Markdown("# What do the models see?\nDrop a picture, or choose one of the examples.")
        picture = gr.State(time_to_live=SESSION)
        with gr.Row():
            with gr.Column(min_width=280):
                upload = Upload(label="Picture", sources=["upload", "webcam", "clipboard"], height=260, buttons=[])
                problem = gr.HTML()
                gallery = gr.Gallery(
                    [(path, f"example {k}") for k, path in enumerate(examples, start=1)],
                    label="Examples", columns=4, height="auto", allow_preview=False, interactive=False, buttons=[],
                )  # fmt: skip
                beam = gr.Slider(1, 10, 3, step=1, label="Beam width", info="beginnings followed at a time")
                temperature = gr.Slider(
                    0, 2, 0, step=0.1, label="Temperature", info="0: the most probable; above: words drawn by chance"
                )
                again = gr.Button("Caption again")
            with gr.Column(scale=3), gr.Row():
                columns = [Column(*item) for item in zip(range(len(titles)), captioners, titles)]
        outputs = [output for column in columns for output in column.outputs]

        def caption(seen, beam, temperature):
            found = []
            for column in columns:
                told = seen and tell(column.captioner, seen.features[column.index], beam, temperature)
                found += column.show(seen, told)
            return found

        def caption_file(path, beam, temperature):
            """A picture was given, or taken away: it, what is wrong with it, and what the models say."""
            seen, wrong = None, ""
            if path:
                try:
                    seen = open_picture(path, captioners)
                except (OSError, ValueError) as error:
                    reason = "it is no picture that can be read" if isinstance(error, Image.UnidentifiedImageError) else error
                    wrong = f'<p class="problem" role="alert">This file can not be used: {html.escape(str(reason))}.</p>'
            return [seen, wrong, *caption(seen, beam, temperature)]

        def caption_example(event: gr.SelectData, beam, temperature):
            path = examples[event.index]
            return [gr.update(value=path), *caption_file(path, beam, temperature)]

        settings = [beam, temperature]
        newest = {"trigger_mode": "always_last", "show_progress": "minimal"}
        upload.input(caption_file, [upload, *settings], [picture, problem, *outputs], api_name="caption", **newest)
        gallery.select(caption_example, settings, [upload, picture, problem, *outputs], api_name=False, **newest)
        again.click(caption, [picture, *settings], outputs, api_name=False, **newest)
        for slider in settings:
            slider.change(caption, [picture, *settings], outputs, api_name=False, **newest)
        for column in columns:
            at = [picture, column.told, column.words]
            column.words.input(column.look, at, column.outputs, api_name=False, **newest)
            column.alternatives.input(
                column.go_on, [*at, column.alternatives, *settings], column.outputs, api_name=False, **newest
            )
    return page


# --------------------------------------------------------------------------------- the command line


def get_args_parser():
    parser = ArgumentParser(prog="python -m rnn_lstm_captioning.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE", help="models to put side by side")
    parser.add_argument("--examples", nargs="+", metavar="PATH", help="pictures or folders to choose from (scenes)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (%(default)s)")
    parser.add_argument("--port", type=positive(int), help="(the first free one from 7860 on)")
    parser.add_argument("--device", type=device_argument, help="(cuda where there is one, else cpu)")
    return parser


def main(arguments=None):
    args = get_args_parser().parse_args(arguments)
    captioners = [load_captioner(path, args.device) for path in args.checkpoint]
    titles = [f"### {NAMES[c.model.cell_type]}\n`{path}`" for c, path in zip(captioners, args.checkpoint)]
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)  # leave in order, so that nothing stays behind
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        examples = example_pictures(args.examples, Path(folder))
        for captioner in captioners:  # the first caption of a process is slow
            captioner.caption(examples[0])
        page = make_page(captioners, titles, examples)
        page.queue(default_concurrency_limit=2)
        page.launch(
            server_name=args.host, server_port=args.port, max_file_size=UPLOAD_LIMIT, state_session_capacity=500,
            share=False, ssr_mode=False, run_history=False, footer_links=[], css=CSS, inbrowser=False,
            theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )  # fmt: skip


def example_pictures(paths, folder):
    """The user's own pictures, or some scenes that no data set holds, drawn into a folder: a list of paths."""
    if paths:
        found = [str(path) for path in find_images(paths)]
        if not found:
            raise InputError(f"there are no pictures in {', '.join(paths)}")
        return found
    chance, examples = random.Random("examples"), []
    for k in range(8):
        examples.append(str(folder / f"scene_{k}.png"))
        Image.fromarray(draw_scene(chance)[0].permute(1, 2, 0).numpy()).save(examples[-1])
    return examples


if __name__ == "__main__":
    run_command(main)