"""A web page to try captioners: python -m rnn_lstm_captioning.demo --checkpoint FILE [FILE ...]

Drop a picture and read what each model says; choose a word to see where the model looked and what else it might
have said; choose one of those, and the model goes on from there. Needs requirements-demo.txt, and no network.
"""

import base64
import html
import math
import os
import random
import signal
import socket
import sys
import tempfile
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from .command import ArgumentParser, leave, run_command
from .command import device as device_argument
from .data.images import find_images, load_image, load_images, open_image
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
figure { margin: 0 } figure img { width: min(100%, 60vh); margin: .5em 0; border-radius: 6px }
figcaption b { display: block; font-size: 1.25em } [role=alert] { font-weight: bold }
footer { display: none !important }
label:has(input[type=radio]:focus-visible) { outline: 2px solid currentColor }
.gallery-item img { width: 60px; height: 60px; object-fit: cover; margin: 0 }
code { overflow-wrap: anywhere; white-space: normal !important }
"""
# Gradio makes every radio button a group of its own; here the arrow keys go through those of one box, as usual
ARROW_KEYS = """() => document.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  const group = event.target.type === "radio" && event.target.closest("fieldset");
  if (!step || !group) return;
  const radios = [...group.querySelectorAll("input[type=radio]")];
  const next = radios[(radios.indexOf(event.target) + step + radios.length) % radios.length];
  event.preventDefault(); next.focus(); next.click();
})"""
SHOW_CAPTION = "() => document.querySelector('figure')?.scrollIntoView({block: 'nearest', behavior: 'smooth'})"


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
    images = {size: load_image(path, size)[None] for size in {captioner.stored_size for captioner in captioners}}
    features = []
    for captioner in captioners:
        with evaluating(captioner.model):
            features.append(captioner.model.encode(images[captioner.stored_size].to(captioner.device)))
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
    description, below = "the picture", f"probability {_chance(caption.log_prob)}"
    if place is not None and caption.attention is None:
        below = "this model saw the whole picture once, before the first word: it has no attention to show"
    elif place is not None and place < len(caption.tokens):
        shown = attention_overlay(shown, caption.attention[place])
        description = f"the picture, bright where the model looked for “{html.escape(caption.tokens[place])}”"
        below = description.removeprefix("the picture, ")
    return (
        f'<figure><figcaption aria-live="polite"><b>{text}</b>{below}</figcaption>'
        f'<img src="{_data(shown)}" alt="{description}"></figure>'
    )


def thumbnail(path):
    """HTML of a small picture, with the file's name for those who do not see it."""
    image = open_image(path, 200)
    image.thumbnail((100, 100))
    return f'<img src="{_data(pil_to_tensor(image))}" alt="{html.escape(Path(path).stem)}">'


def words_to_choose(told):
    """The caption's words, and its end, as a radio button's choices."""
    tokens = told.caption.tokens
    places = [*tokens, END] if len(tokens) < MAX_WORDS else tokens
    return [(_readable(word), place) for place, word in enumerate(places)]


def alternatives(told, place):
    """The words that might stand at a place, with their probabilities, as a radio button's choices."""
    choices = [(f"{_readable(word)}  {_percent(prob)}", word) for word, prob in told.next_words[place]]
    here = (*told.caption.tokens, END)[place]
    if here not in (word for _, word in choices):
        choices.append((_readable(here), here))
    return choices, here


def _readable(word):
    return "(end)" if word == END else word


def _data(image):
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_bytes(image)).decode()}"


def _chance(log_prob):
    return f"1 in {math.exp(-log_prob):,.0f}" if log_prob > -13.8 else "under one in a million"


def _percent(share):
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.1f} %" if share > 0.001 else "under 0.1 %"


# ----------------------------------------------------------------------------------------- the page


def hidden():
    return gr.update(visible=False)


def clamped(lowest, highest, value):
    return min(max(value, lowest), highest)


def must_know(told):
    if told is None:
        raise gr.Error("The page has forgotten this picture: give it once more.")


class Column:
    """What the page shows of one captioner."""

    def __init__(self, index, captioner, title):
        self.index, self.captioner = index, captioner
        with gr.Column(min_width=260):
            gr.Markdown(title)
            self.told = gr.State(time_to_live=SESSION)
            self.figure = gr.HTML()
            self.words = gr.Radio(
                label="Choose a word", info="Where did the model look? What else might it have said?", visible=False
            )
            self.alternatives = gr.Radio(info="Choose another, and the model goes on from there.", visible=False)

    def show(self, picture, told):
        """A new caption, or none: values for told, figure, words and alternatives."""
        if told is None:
            return [None, "", hidden(), hidden()]
        words = gr.update(choices=words_to_choose(told), value=None, visible=True)
        return [told, draw_figure(picture, told, None), words, hidden()]

    def look(self, picture, told, place):
        """A word was chosen: values for figure and alternatives."""
        must_know(told)
        place = min(place, len(told.caption.tokens))  # it may have been chosen just before the caption changed
        choices, here = alternatives(told, place)
        label = "Instead of the end" if here == END else f"Instead of “{here}”"
        return [draw_figure(picture, told, place), gr.update(choices=choices, value=here, visible=True, label=label)]

    def go_on(self, picture, told, place, word, beam, temperature):
        """Another word was chosen: keep what stands before it, and let the model go on after it. Values for told,
        figure and words; the alternatives are the same, and the keyboard stays on them."""
        must_know(told)
        beginning = [*told.caption.tokens[:place], word]
        told = tell(self.captioner, picture.features[self.index], beam, temperature, beginning)
        return [told, draw_figure(picture, told, place), gr.update(choices=words_to_choose(told), value=place)]


def make_page(captioners, titles, examples):
    """The page. Args: captioners; titles, Markdown, one each; examples, paths of pictures to choose."""
    with gr.Blocks(title="Image captioning", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT)) as page:
        gr.Markdown("# What do the models see?\nDrop a picture, or choose one of the examples.")
        picture = gr.State(time_to_live=SESSION)
        with gr.Row():
            with gr.Column(min_width=280):
                upload = gr.Image(label="Picture", sources=["upload", "webcam", "clipboard"], height=260, buttons=[])
                upload.preprocess = lambda file: file and file.path  # as it came: open_image says what is wrong with it
                problem = gr.HTML(visible=False)
                gallery = gr.Dataset(
                    components=[gr.HTML(visible=False)], samples=[[thumbnail(path)] for path in examples],
                    type="index", label="Examples", samples_per_page=8,
                )  # fmt: skip
                with gr.Accordion("Beam width and temperature", open=False):
                    beam = gr.Slider(1, 10, 5, step=1, label="Beam width", info="Beginnings followed at a time.")
                    temperature = gr.Slider(
                        0, 2, 0, step=0.1, label="Temperature",
                        info="0: the most probable caption; above: words drawn by chance, without a beam.",
                    )  # fmt: skip
                    for slider in (beam, temperature):  # what is typed beside it may be out of range
                        slider.preprocess = partial(clamped, slider.minimum, slider.maximum)
                again = gr.Button("Caption again")
            with gr.Column(scale=3), gr.Row():
                columns = [Column(index, *item) for index, item in enumerate(zip(captioners, titles))]
        outputs = [part for c in columns for part in (c.told, c.figure, c.words, c.alternatives)]

        def caption(seen, beam, temperature):
            """Values for the columns."""
            found = []
            for column in columns:
                told = seen and tell(column.captioner, seen.features[column.index], beam, temperature)
                found += column.show(seen, told)
            return found

        def caption_file(path, beam, temperature):
            """Values for problem, picture and the columns."""
            seen, wrong = None, hidden()
            if path:
                try:
                    seen = open_picture(path, captioners)
                except (OSError, ValueError) as error:
                    known = isinstance(error, Image.UnidentifiedImageError)  # its text names our temporary file
                    kinds = "it is not a picture of a known kind (JPEG, PNG, WebP, GIF, BMP, TIFF)"
                    reason = kinds if known else html.escape(str(error))
                    wrong = gr.update(value=f'<p role="alert">This file can not be used: {reason}.</p>', visible=True)
            return [wrong, seen, *caption(seen, beam, temperature)]

        def caption_upload(path, beam, temperature):
            problem, seen, *told = caption_file(path, beam, temperature)
            return [path if seen else None, problem, seen, *told]

        def caption_again(seen, beam, temperature):
            if seen is None:
                gr.Warning("Give a picture first, or choose an example.")
            return caption(seen, beam, temperature)

        def caption_example(index, beam, temperature):
            return [None, *caption_file(examples[index], beam, temperature)]

        settings, everything = [beam, temperature], [upload, problem, picture, *outputs]
        newest = {"trigger_mode": "always_last", "show_progress": "minimal"}
        uploaded = upload.input(caption_upload, [upload, *settings], everything, api_name="caption", **newest)
        chosen = gallery.click(caption_example, [gallery, *settings], everything, api_name=False, **newest)
        for event in (uploaded, chosen):
            event.then(None, js=SHOW_CAPTION)
        page.load(None, js=ARROW_KEYS)
        again.click(caption_again, [picture, *settings], outputs, api_name=False, **newest)
        for slider in settings:
            slider.change(caption, [picture, *settings], outputs, api_name=False, **newest)
        for column in columns:
            place = [picture, column.told, column.words]
            column.words.input(column.look, place, [column.figure, column.alternatives], api_name=False, **newest)
            column.alternatives.input(
                column.go_on, [*place, column.alternatives, *settings], [column.told, column.figure, column.words],
                api_name=False, **newest,
            )  # fmt: skip
    return page


# --------------------------------------------------------------------------------- the command line


def get_args_parser():
    parser = ArgumentParser(prog="python -m rnn_lstm_captioning.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE", help="models to put side by side")
    parser.add_argument("--examples", nargs="+", metavar="PATH", help="up to 24 pictures to choose from (scenes)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (%(default)s)")
    parser.add_argument("--port", type=port_number, help="(the first free one from 7860 on)")
    parser.add_argument("--device", type=device_argument, help="(cuda where there is one, else cpu)")
    return parser


def port_number(text):
    if not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text} is not a port, which is a number from 1 to 65535")
    return int(text)


def main(arguments=None):
    args = get_args_parser().parse_args(arguments)
    try:
        socket.create_server((args.host, args.port or 0)).close()
    except OSError as error:
        raise InputError(f"the page can't be at {args.host}, port {args.port or 'any'}: {error.strerror}") from error
    captioners = [load_captioner(path, args.device) for path in args.checkpoint]
    titles = [f"## {NAMES[c.model.cell_type]}\n`{path}`" for c, path in zip(captioners, args.checkpoint)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave in order, so that nothing stays behind
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        examples = example_pictures(args.examples, Path(folder))
        for captioner in captioners:  # the first caption of a process is slow
            captioner.caption(examples[0])
        page = make_page(captioners, titles, examples)
        page.queue(default_concurrency_limit=2)
        _, url, _ = page.launch(
            server_name=args.host, server_port=args.port, max_file_size=UPLOAD_LIMIT, state_session_capacity=500,
            share=False, ssr_mode=False, run_history=False, footer_links=[], css=CSS, theme=theme(), quiet=True,
            prevent_thread_lock=True,
        )  # fmt: skip
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def theme():
    """Gradio's, with the system's own fonts instead of downloaded ones, and small print that can be read."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    small_print = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    return gr.themes.Default(primary_hue="blue", **fonts).set(**small_print)


def example_pictures(paths, folder):
    """The user's own pictures, or some scenes that no data set holds, drawn into a folder: a list of paths."""
    if paths:
        _, found, failed = load_images(find_images(paths)[:24], 16)
        for path, reason in failed:
            print(f"{path}: {reason}", file=sys.stderr)
        if not found:
            raise InputError(f"there are no pictures that can be read in {', '.join(paths)}")
        return [str(path) for path in found]
    chance, examples = random.Random("examples"), []
    for k in range(8):
        examples.append(str(folder / f"scene {k + 1}.png"))
        Image.fromarray(draw_scene(chance)[0].permute(1, 2, 0).numpy()).save(examples[-1])
    return examples


if __name__ == "__main__":
    run_command(main)
