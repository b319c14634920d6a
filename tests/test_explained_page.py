"""The page that explains captions: the network in the browser computes what Python computes, and the page works."""

import json
import random
import re

import pytest
import torch
from helpers import CELLS
from in_browser import assert_accessible, in_a_browser

from rnn_lstm_captioning import Decoding, InputError, ModelSettings, build_captioner, load_captioner, load_captions
from rnn_lstm_captioning.classroom.explained_page import LIVE_CELLS, caption_data, equation_of, live_data, write_page
from rnn_lstm_captioning.classroom.explaining import explain
from rnn_lstm_captioning.classroom.interventions import Intervened, Intervention, gate_names
from rnn_lstm_captioning.commands.inspecting import main
from rnn_lstm_captioning.data.scenes import draw_scene
from rnn_lstm_captioning.evaluation.captions import ImageCaptioner
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.decoding import decode


@pytest.fixture(scope="module")
def words():
    return load_captions("scenes").word_to_idx


def scene(seed=0):
    return draw_scene(random.Random(seed))[0]


def captioner_of_scenes(cell, words, **settings):
    """Random weights, but a BatchNorm with statistics, and features with mean 0, as in a trained one."""
    torch.manual_seed(3)
    defaults = dict(encoder="mobilenet_v3_small", encoder_layer="features.8", hidden_dim=16, wordvec_dim=12)
    model = build_captioner(ModelSettings(cell=cell, **(defaults | settings)), words)
    images = torch.stack([scene(k) for k in range(8)])
    model.image_encoder.calibrate(images)
    for module in model.image_encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2), torch.nn.init.normal_(module.bias, std=0.1)
    with evaluating(model):
        model.standardize(model.encode(images))
    model.vocabulary_projection.weight.data *= 20  # some words are far more probable than others
    return ImageCaptioner(model.eval(), 112)


def opened(browser, path, **options):
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    return page, problems


@in_a_browser
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell in LIVE_CELLS])
def test_the_network_in_the_browser_computes_what_python_computes(cell, words, browser, tmp_path):
    captioner = captioner_of_scenes(cell, words)
    model, image = captioner.model, scene(5)
    write_page(tmp_path / "page.html", [], live_data(captioner))
    page, problems = opened(browser, tmp_path / "page.html")
    pixels = image.flatten().tolist()
    script = "([pixels, held]) => { const rows = live.project(live.features = live.encode(pixels));"
    script += "const found = live.caption(rows, held); return {...found, features: Array.from(live.features.data)}; }"
    changes = [
        Intervention(),
        *(Intervention(gates={name: value}) for name in gate_names(model) for value in (0, 0.3, 1)),
    ]
    for change in changes:
        found = page.evaluate(script, [pixels, {name: value for name, value in change.gates.items()}])
        with evaluating(model):
            features = model.encode(image[None])
            wanted = decode(Intervened(model, change), features, Decoding())
        torch.testing.assert_close(torch.tensor(found["features"]), features.flatten(), atol=1e-4, rtol=1e-3)
        row = wanted.captions[0]
        assert found["words"] == row[: len(found["words"])].tolist()
        assert sum(found["logProbs"]) == pytest.approx(wanted.log_probs.item(), abs=1e-4 * len(row))
        if model.cell.uses_grid:
            weights = torch.tensor(found["attention"])
            torch.testing.assert_close(weights, wanted.attn_weights[0, : len(weights)].flatten(1), atol=1e-4, rtol=0)
    assert problems == []


@in_a_browser
def test_occlusion_in_the_browser_is_that_of_python(words, browser, tmp_path):
    captioner = captioner_of_scenes("lstm", words)
    write_page(tmp_path / "page.html", [], live_data(captioner))
    page, _ = opened(browser, tmp_path / "page.html")
    image = scene(4)
    script = "(pixels) => { live.held = {}; const f = live.encode(pixels), found = live.caption(live.project(f));"
    script += "return [found.words, live.occlusion(f, found.words, 1)]; }"
    indices, values = page.evaluate(script, image.flatten().tolist())
    with evaluating(captioner.model):
        features = captioner.model.encode(image[None])
    written = [captioner.model.idx_to_word[index] for index in indices if index != 2]
    wanted = explain(captioner.model, features, written).region_occlusion[1]
    torch.testing.assert_close(torch.tensor(values), wanted.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet18", "encoder_layer": None},  # too large, and it has a pooling
        {"image_input": "first-token"},
        {"image_size": 64},
    ],
    ids=str,
)
def test_a_captioner_that_the_page_cannot_run_gets_a_page_without_it(settings, words):
    assert live_data(captioner_of_scenes("lstm", words, **settings)) is None


def test_a_captioner_of_other_words_gets_a_page_without_it(trained_cells):
    captioner = load_captioner(trained_cells / "lstm_best.pt", "cpu")
    captioner.model.word_to_idx = {f"w{k}": k for k in range(len(captioner.model.word_to_idx))}
    assert live_data(captioner) is None


@pytest.mark.parametrize("cell", CELLS)
def test_the_data_of_a_caption_is_its_explanation(cell, trained_cells):
    captioner = load_captioner(trained_cells / f"{cell}_best.pt", "cpu")
    image = scene(1)
    found = caption_data(captioner, image, "a scene")
    (caption,) = captioner.caption_images(image[None])
    with evaluating(captioner.model):
        features = captioner.model.encode(image[None])
    wanted = explain(captioner.model, features, caption.words)
    assert found["words"] == [*caption.words, "<END>"]
    torch.testing.assert_close(torch.tensor(found["occlusion"]), wanted.region_occlusion.flatten(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found["wordGradient"]), wanted.word_gradient, atol=1e-3, rtol=0)
    assert all(row[0][0] == word for row, word in zip(found["top"], caption.words))
    assert (found["attention"] is None) == (wanted.attention is None)
    for gate in found["gates"]:
        assert gate["equation"] == equation_of(captioner.model, gate["name"]) != ""
        assert re.search(r"\([A-Z]+-\d+\)$", gate["equation"])
    json.dumps(found)


@in_a_browser
def test_the_page_of_two_captioners_and_a_photo_walks_through_the_words(trained_cells, browser, tmp_path, capsys):
    checkpoints = [str(trained_cells / f"{cell}_best.pt") for cell in ("attn", "gru")]
    out = tmp_path / "page.html"
    main(["--checkpoint", *checkpoints, "--image", str(trained_cells / "photo.png"), "--html", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {out}"
    assert out.stat().st_size < 3_000_000 and not re.search(
        r"(?:src|href)=[\"']?https?:", out.read_text(encoding="utf-8")
    )
    page, problems = opened(browser, out)
    assert page.locator("#caption option").count() == 2 and page.locator("#live").is_hidden()
    data = json.loads(page.locator("#data").text_content())["captions"]
    buttons = page.locator("#words button")
    assert [text.strip() for text in buttons.all_inner_texts()] == data[0]["words"]
    buttons.first.click()
    page.keyboard.press("ArrowRight")
    assert page.locator("#words [aria-pressed=true]").inner_text().strip() == data[0]["words"][1]
    assert data[0]["words"][1] in page.locator("#say").inner_text()
    pictures = set()
    for way in ("attention", "gradient", "occlusion"):
        page.get_by_role("radio", name=way).check()
        pictures.add(page.locator("#picture").evaluate("canvas => canvas.toDataURL()"))
    assert len(pictures) == 3
    canvas = page.locator("#maps canvas").first
    canvas.hover()
    assert "(ATT-7)" in page.locator("#unit").inner_text()
    page.locator("#caption").select_option("1")
    assert page.locator("#ways label").count() == 2  # the GRU has no attention
    assert problems == []


@in_a_browser
def test_objects_can_be_moved_and_gates_held(words, browser, tmp_path):
    write_page(tmp_path / "page.html", [], live_data(captioner_of_scenes("attn", words)))
    page, problems = opened(browser, tmp_path / "page.html")

    def log_probs():
        return page.evaluate("live.found.logProbs.join()")

    before = log_probs()
    box = page.locator("#scene").bounding_box()
    page.mouse.move(box["x"] + 84 * 3, box["y"] + 60 * 3)
    page.mouse.down()
    page.mouse.move(box["x"] + 84 * 3, box["y"] + 90 * 3, steps=3)
    page.mouse.up()
    page.wait_for_timeout(200)
    dragged = log_probs()
    assert dragged != before and page.evaluate("scene.objects[0].y") == pytest.approx(90, abs=1)
    page.locator("#scene").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(200)
    assert log_probs() != dragged
    page.locator("#colour").select_option("green")
    free = log_probs()
    page.get_by_role("checkbox", name="forget gate f").check()
    assert log_probs() != free and page.locator("#live-equation").inner_text().endswith("(ATT-7)")
    page.get_by_role("checkbox", name="forget gate f").uncheck()
    assert log_probs() == free
    page.locator("#live-caption button").first.click()
    assert "where it looked" in page.locator("#live-say").inner_text()
    assert problems == []


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_explained_page_is_accessible_and_fits(width, scheme, words, browser, tmp_path):
    captioner = captioner_of_scenes("attn", words)
    write_page(tmp_path / "page.html", [caption_data(captioner, scene(1), "a scene")], live_data(captioner))
    phone = width < 500
    options = dict(viewport={"width": width, "height": 844}, color_scheme=scheme, is_mobile=phone, has_touch=phone)
    page, problems = opened(browser, tmp_path / "page.html", **options)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if phone:  # the caption is on the first screen
        box = page.locator("#live-caption button").first.bounding_box()
        assert box["y"] + box["height"] < 844
    page.locator("#live-caption button").first.click()
    assert_accessible(page)
    assert problems == []


def test_wrong_flags_of_inspect_are_refused(trained_cells, tmp_path):
    checkpoint, photo = str(trained_cells / "attn_best.pt"), str(trained_cells / "photo.png")
    for flags, sentence in (
        (["--html", "x.html", "--gradients"], "give either --html FILE or --gradients"),
        (["--image", photo, photo], "--image takes one checkpoint and one image"),
        (["--html", str(tmp_path / "x.html"), "--image", "missing.png"], "missing.png"),
    ):
        with pytest.raises(InputError, match=sentence):
            main(["--checkpoint", checkpoint, *flags])
    assert not (tmp_path / "x.html").exists()
