"""The pages agree with the code: tags, links, commands, examples."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from rnn_lstm_captioning import load_captioner
from rnn_lstm_captioning.__main__ import COMMANDS
from rnn_lstm_captioning.commands.common import SCRIPTS
from rnn_lstm_captioning.commands.flags import PARSERS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]
TAG = r"\([A-Z]+-\d+\)"


def test_every_tag_occurs_once_in_the_code_and_once_in_the_pages():
    sources = (ROOT / "rnn_lstm_captioning/cells").glob("*.py")
    code = Counter(tag for path in sources for tag in re.findall(TAG, path.read_text()))
    pages = Counter(tag for path in PAGES for tag in re.findall(rf"\\text\{{({TAG})\}}", path.read_text()))
    assert len(code) > 50 and set(code.values()) == {1}
    assert pages == code
    known = {tag[1:-1] for tag in code}
    prefixes = "|".join({tag.split("-")[0] for tag in known})
    for path in PAGES:
        assert set(re.findall(rf"\b(?:{prefixes})-\d+", path.read_text())) <= known, path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_existing_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_the_pages_exist(page):
    for name in re.findall(
        r"`((?!\w+/NAME)(?:docs|tests|benchmarks|recipes|cells|data|model|evaluation|training|classroom|commands)/[\w/]+\.\w+)`",
        page.read_text(),
    ):
        assert any((ROOT / folder / name).exists() for folder in (".", "rnn_lstm_captioning")), name


def commands(page):
    """Our commands in a page's shell examples: yields the name of each, and its arguments."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                rest = [word for word in words[place + 1 :] if word not in ("...", "FLAGS")]
                if word.startswith(("train_", "test_")):
                    yield word, rest
                elif word in ("rnn_lstm_captioning", "rnn-lstm-captioning") and "install" not in words:
                    yield f"{rest[0]}", rest[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_pages_have_valid_flags(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = {name: cell for cell, name in SCRIPTS.items()}
    for command, arguments in commands(page):
        kind, _, name = command.removesuffix(".py").partition("_")
        parser = PARSERS[kind](cells[name]) if name else PARSERS[kind]()
        if "--help" not in arguments:
            parser.parse_args(arguments)


def test_the_readme_shows_every_command():
    shown = {command.removesuffix(".py") for command, _ in commands(ROOT / "README.md")}
    assert {*COMMANDS} - {"test"} | {f"{kind}_lstm_attention" for kind in ("train", "test")} <= shown


def test_the_python_example_in_the_readme_runs(trained_cells, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").symlink_to(ROOT / "models")
    Image.open(trained_cells / "photo.png").convert("RGB").save(tmp_path / "holiday.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.strip() == load_captioner("models/flickr8k.safetensors").caption("holiday.jpg").text


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_the_python_examples_in_the_pages_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if "import " in block:  # the others are excerpts
            printed = []
            exec(block, {"print": printed.append})
            if "rel_error" in block:
                assert printed[-1] < 1e-8


NOTEBOOK = ROOT / "docs/tour.ipynb"
CHECKS = """
assert max(errors.values()) < 1e-6 and curves['rnn, new'][20] < curves['lstm, new'][20]
assert len(beam) == 200 and all(len(caption.words) > 3 for caption in beam)
assert losses[1] < losses[0] and abs(losses[0] - math.log(V)) < 0.3
"""


def test_the_notebook_runs_and_shows_its_figures():
    """All cells run in order in Jupyter's kernel, as a reader runs them."""
    pytest.importorskip("nbclient", reason="needs requirements-docs.txt")
    from docs.scripts import tour

    assert NOTEBOOK.read_text().count("epochs=4") == 1  # the reader's four epochs give better captions
    notebook = tour.run({"epochs=4": "epochs=1", "draw_gradients(curves)": CHECKS + "draw_gradients(curves)"})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == sum(
        cell.source.rstrip().endswith(("figure", "draw_gradients(curves)", "top=5))")) for cell in notebook.cells
    )
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("Your turn:") == 5 and "0.0e+00" not in printed


def test_the_notebook_has_stored_outputs_of_its_present_code():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == place for place, cell in enumerate(cells, start=1)), "run make tour"
    pictures = [output["data"]["image/png"] for cell in cells for output in cell["outputs"] if "data" in output]
    assert len(pictures) == 5
    assert NOTEBOOK.stat().st_size < 1_000_000
    text = NOTEBOOK.read_text()
    assert "/tmp/" not in text and "OWNER" not in text and "PROJECT" not in text


def test_links_in_the_notebook_point_to_existing_files():
    cells = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
