"""A web page to try captioners: drop an image and read each model's caption; choose a word to see where it came from
(attention, gradient, occlusion) and which other words were probable; choose one of those, and the model continues from
there; break a gate, and see what is lost. Needs Gradio.
"""

import html
import ipaddress
import socket
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ..evaluation.captions import ImageCaptioner
from ..text import printable
from .explaining import explain
from .predictions import (
    END,
    WHOLE,
    OpenedImage,
    Prediction,
    alternatives,
    draw_figure,
    interventions,
    open_file,
    predict,
    thumbnail,
    words_to_choose,
)

try:
    import gradio as gr
    from starlette.responses import PlainTextResponse
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the page needs Gradio: pip install -r requirements-demo.txt, or pip install gradio"
    ) from error

UPLOAD_LIMIT = "20mb"
KEPT = 60  # seconds for which an uploaded file is kept: the browser fetches it again for its preview
SESSION = 3600  # seconds for which a visitor's unused image is remembered
CSS = """
figure { margin: 0 } figure img { width: min(100%, 60vh); margin: .5em 0; border-radius: 6px }
figcaption b { display: block; font-size: 1.25em } figure .ways { display: flex; gap: .5em; flex-wrap: wrap }
figure .ways span { flex: 1 1 30%; min-width: 7em; font-size: .9em } figure .ways img { width: 100% }
@media (max-width: 640px) { .results { order: -1 } } [role=alert] { font-weight: bold }
footer { display: none !important }
label:has(input[type=radio]:focus-visible) { outline: 2px solid currentColor }
.gallery-item img { width: 60px; height: 60px; object-fit: cover; margin: 0 }
code { overflow-wrap: anywhere; white-space: normal !important }
"""
# in Gradio, every radio button is its own group; here the arrow keys move through the buttons of one box, as usual
ARROW_KEYS = """() => document.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  const group = event.target.type === "radio" && event.target.closest("fieldset");
  if (!step || !group) return;
  const radios = [...group.querySelectorAll("input[type=radio]")];
  const next = radios[(radios.indexOf(event.target) + step + radios.length) % radios.length];
  event.preventDefault(); next.focus(); next.click();
})"""
SHOW_CAPTION = "() => document.querySelector('figure')?.scrollIntoView({block: 'nearest', behavior: 'smooth'})"


# ----------------------------------------------------------------------------------------- the page


def hidden() -> dict:
    """The update that hides a component."""
    return gr.update(visible=False)


def clamped(lowest: float, highest: float, value: float) -> float:
    """The value, but at least the lowest and at most the highest."""
    return min(max(value, lowest), highest)


def check_remembered(prediction: Prediction | None) -> None:
    if prediction is None:
        raise gr.Error("The page no longer has this image: upload it once more.")


class KnownHosts:
    """Refuses requests that are meant for another host. A page of the web could otherwise give its own name our
    address, and read our answers (DNS rebinding). Args: app, an ASGI application; host, the name that is listened at.
    """

    def __init__(self, app: Callable, host: str) -> None:
        self.app, self.names = app, {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: MutableMapping, receive: Callable, send: Callable) -> None:
        host = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if scope["type"] == "lifespan" or self.knows(host):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("this host name is not allowed", status_code=421)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def knows(self, host: str) -> bool:
        """Whether a Host header has one of our names, or a number: only a name can be given another address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def delete_old_files(folder: Path, keep: Sequence[str]) -> None:
    """For ever: delete the uploaded files that are older than KEPT seconds, except those to keep."""
    while True:
        time.sleep(KEPT / 2)
        for path in sorted(folder.rglob("*"), reverse=True):  # the files in a folder come before the folder
            try:
                old = time.time() - path.lstat().st_ctime > KEPT and str(path) not in keep
                if path.is_dir():
                    if old and not any(path.iterdir()):
                        path.rmdir()
                elif old:
                    path.unlink()
            except OSError:  # it is in use, or gone: the next round looks again
                continue


class Column:
    """What the page shows of one captioner."""

    def __init__(self, index: int, captioner: ImageCaptioner, title: str, opened: OpenedImage | None = None) -> None:
        """Args: opened, the image that the page shows first."""
        self.index, self.captioner = index, captioner
        first = opened and self.predict(opened, (5, 0, WHOLE))
        with gr.Column(min_width=260):
            gr.Markdown(title)
            self.prediction = gr.State(first, time_to_live=SESSION)
            self.figure = gr.HTML(draw_figure(opened, first) if opened and first else "")
            self.words = gr.Radio(
                words_to_choose(first) if first else None, label="Choose a word", visible=first is not None,
                info="Where did it come from? Which other words were probable?",
            )  # fmt: skip
            self.alternatives = gr.Radio(info="Choose another word, and the model continues from there.", visible=False)

    def show(self, opened: OpenedImage | None, prediction: Prediction | None) -> list:
        """Show a new caption, or none. Returns: values for prediction, figure, words and alternatives."""
        if opened is None or prediction is None:
            return [None, "", hidden(), hidden()]
        words = gr.update(choices=words_to_choose(prediction), value=None, visible=True)
        return [prediction, draw_figure(opened, prediction), words, hidden()]

    def look(self, opened: OpenedImage, prediction: Prediction, place: int) -> list:
        """A word was chosen. Returns: values for figure and alternatives."""
        check_remembered(prediction)
        place = min(place, len(prediction.caption.words))  # it may have been chosen just before the caption changed
        choices, here = alternatives(prediction, place)
        label = "Instead of the end" if here == END else f"Instead of “{here}”"
        shown = gr.update(choices=choices, value=here, visible=True, label=label)
        return [self.draw(opened, prediction, place), shown]

    def continue_caption(
        self, opened: OpenedImage, prediction: Prediction, place: int, word: str, *settings: float | str
    ) -> list:
        """Another word was chosen: keep the words before it, and let the model continue after it. Returns: values
        for prediction, figure and words; the alternatives don't change, and the keyboard focus stays on them."""
        check_remembered(prediction)
        beginning = [*prediction.caption.words[:place], word]
        prediction = self.predict(opened, settings, beginning)
        choices = gr.update(choices=words_to_choose(prediction), value=place)
        return [prediction, self.draw(opened, prediction, place), choices]

    def draw(self, opened: OpenedImage, prediction: Prediction, place: int) -> str:
        """HTML that explains the word at a place."""
        found = explain(self.captioner.model, opened.features[self.index], prediction.caption.words)
        return draw_figure(opened, prediction, place, found)

    def predict(self, opened: OpenedImage, settings: Sequence, beginning: Sequence[str] = ()) -> Prediction:
        """A caption of this captioner. Args: settings, the values of beam width, temperature and what is changed."""
        beam, temperature, broken = settings
        return predict(self.captioner, opened.features[self.index], beam, temperature, beginning, broken)

    def renew(
        self, opened: OpenedImage | None, prediction: Prediction | None, place: int | None, settings: Sequence
    ) -> list:
        """A setting was changed: write the caption again. If a word is chosen, the words up to it stay, and so does the
        choice. Returns: values for prediction, figure, words and alternatives."""
        if opened is None or prediction is None:
            return self.show(None, None)
        if place is None or place >= len(prediction.caption.words):
            return self.show(opened, self.predict(opened, settings))
        prediction = self.predict(opened, settings, prediction.caption.words[: place + 1])
        choices = gr.update(choices=words_to_choose(prediction), value=place)
        figure, others = self.look(opened, prediction, place)
        return [prediction, figure, choices, others]


def make_page(captioners: Sequence[ImageCaptioner], titles: Sequence[str], examples: Sequence[str]) -> gr.Blocks:
    """The page. Args: captioners; titles, Markdown, one each; examples, paths of images to choose from."""
    with gr.Blocks(title="Image captioning", analytics_enabled=False) as page:
        gr.Markdown("# What do the models see?\nDrop an image, or choose one of the examples.")
        first = open_file(examples[0], captioners) if examples else None
        opened = gr.State(first, time_to_live=SESSION)
        with gr.Row():
            with gr.Column(min_width=280):
                upload = gr.Image(label="Image", sources=["upload", "webcam", "clipboard"], height=260, buttons=[])
                upload.preprocess = lambda file: file and file.path  # unchanged: open_image says what is wrong
                problem = gr.HTML(visible=False)
                gallery = gr.Dataset(
                    components=[gr.HTML(visible=False)], samples=[[thumbnail(path)] for path in examples],
                    type="index", label="Examples", samples_per_page=8,
                )  # fmt: skip
                with gr.Accordion("Beam width and temperature", open=False):
                    beam = gr.Slider(1, 10, 5, step=1, label="Beam width", info="Partial captions kept at every step.")
                    temperature = gr.Slider(
                        0, 2, 0, step=0.1, label="Temperature",
                        info="0: the most probable caption; above 0: words drawn at random, without a beam.",
                    )  # fmt: skip
                    for slider in (beam, temperature):  # a typed number may be out of range
                        slider.preprocess = partial(clamped, slider.minimum, slider.maximum)
                changes = dict.fromkeys(name for captioner in captioners for name in interventions(captioner))
                broken = gr.Dropdown(
                    [WHOLE, *changes], value=WHOLE, label="Change in the model", filterable=False,
                    info="A gate is held at a value, or a part is taken away. What is lost?",
                )  # fmt: skip
                again = gr.Button("Caption again")
            with gr.Column(scale=3, elem_classes="results"), gr.Row():
                columns = [Column(index, *item, first) for index, item in enumerate(zip(captioners, titles))]
        outputs = [part for c in columns for part in (c.prediction, c.figure, c.words, c.alternatives)]

        def caption(seen, *settings):
            """Values for the columns."""
            values = []
            for column in columns:
                values += column.show(seen, seen and column.predict(seen, settings))
            return values

        def caption_file(path, *settings):
            """Values for problem, opened and the columns."""
            seen, wrong = None, hidden()
            if path:
                try:
                    seen = open_file(path, captioners)
                except (OSError, ValueError) as error:
                    reason = html.escape(printable(error))
                    wrong = gr.update(value=f'<p role="alert">This file can not be used: {reason}.</p>', visible=True)
            return [wrong, seen, *caption(seen, *settings)]

        def caption_upload(path, *settings):
            problem, seen, *values = caption_file(path, *settings)
            return [path if seen else None, problem, seen, *values]

        def caption_again(seen, *settings):
            if seen is None:
                gr.Warning("Upload an image first, or choose an example.")
            return caption(seen, *settings)

        def caption_example(index, *settings):
            return [None, *caption_file(examples[index], *settings)]

        def change_setting(seen, beam, temperature, broken, *chosen):
            """Chosen: the prediction and the chosen word of each column. Values for the columns."""
            values = []
            for column, prediction, place in zip(columns, chosen[::2], chosen[1::2]):
                values += column.renew(seen, prediction, place, (beam, temperature, broken))
            return values

        settings, everything = [beam, temperature, broken], [upload, problem, opened, *outputs]
        newest = {"trigger_mode": "always_last", "show_progress": "minimal"}
        uploaded = upload.input(caption_upload, [upload, *settings], everything, api_name="caption", **newest)
        chosen = gallery.click(caption_example, [gallery, *settings], everything, api_name=False, **newest)
        for event in (uploaded, chosen):
            event.then(None, js=SHOW_CAPTION)
        page.load(None, js=ARROW_KEYS)
        again.click(caption_again, [opened, *settings], outputs, api_name=False, **newest)
        chosen_words = [part for column in columns for part in (column.prediction, column.words)]
        for setting in settings:
            setting.change(change_setting, [opened, *settings, *chosen_words], outputs, api_name=False, **newest)
        for column in columns:
            place = [opened, column.prediction, column.words]
            column.words.input(column.look, place, [column.figure, column.alternatives], api_name=False, **newest)
            column.alternatives.input(
                column.continue_caption, [*place, column.alternatives, *settings],
                [column.prediction, column.figure, column.words],
                api_name=False, **newest,
            )  # fmt: skip
    return page


def theme() -> gr.themes.Base:
    """Gradio's own theme, with the system's fonts instead of downloaded ones, and small text that is easier to read."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    small_print = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    return gr.themes.Default(primary_hue="blue", **fonts).set(**small_print)
