"""The web page, as visitors use it: in a headless Chromium, and with fifty visitors at once.

These tests need requirements-demo.txt, `pip install playwright axe-playwright-python`, and Chromium.
"""

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from in_browser import assert_accessible, in_a_browser, sync_api
from PIL import Image

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.classroom import predictions
from rnn_lstm_captioning.commands import demo

pytest.importorskip("gradio", reason="needs requirements-demo.txt")
gradio_client = pytest.importorskip("gradio_client")

from rnn_lstm_captioning.classroom import page as web  # noqa: E402, it imports Gradio

CELLS = ("attn", "lstm")
KEPT = 15  # seconds, instead of a minute, so that the tests are fast


@pytest.fixture(scope="module")
def captioners(trained_cells):
    return [load_captioner(trained_cells / f"{cell}_best.pt", "cpu") for cell in CELLS]


@pytest.fixture(scope="module")
def site(trained_cells, tmp_path_factory):
    """The address of a running page, and the folder of its temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / f"rnn_lstm_captioning-{dead.pid}-left").mkdir()  # of a page that was killed
    (folder / f"rnn_lstm_captioning-{dead.pid}-left" / "photo.jpg").touch()
    checkpoints = [str(trained_cells / f"{cell}_best.pt") for cell in CELLS]
    code = f"from rnn_lstm_captioning.classroom import page; page.KEPT = {KEPT}; "
    code += "from rnn_lstm_captioning.commands import common, demo; common.run_command(demo.main)"
    command = [sys.executable, "-c", code, "--checkpoint", *checkpoints, "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+/", line).group(), folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert list(folder.rglob("*.*")) == []  # no uploaded file is left
    assert process.returncode == 0


@pytest.fixture
def page(browser, site):
    with browser.new_context() as context:
        yield opened(context, site)


def opened(context, site):
    page = context.new_page()
    page.goto(site[0])
    page.locator(".gallery-item img").last.wait_for()
    page.locator("figure img").first.wait_for()  # of the first example
    return page


def upload(page, path, refused=False):
    """Upload a file, and wait until the page shows something else. Args: refused, before it is sent."""
    shown = "document.querySelector('figure img')?.src ?? null"
    before = page.evaluate(shown)
    page.locator("input[type=file]").set_input_files(path)
    if not refused:
        page.wait_for_function(f"before => ({shown}) !== before", arg=before)


def captions_on(page):
    """Wait for the captions on the page. Returns: their texts."""
    page.locator("figcaption b").first.wait_for()
    return page.locator("figcaption b").all_inner_texts()


def group(page, label, column=0):
    return page.locator("fieldset", has_text=label).nth(column)


@in_a_browser
def test_a_visitor_sees_the_captions_and_can_choose_another_word(page, trained_cells, captioners):
    image = trained_cells / "photo.png"
    upload(page, image)
    expected = [captioner.caption(image, beam=5, max_length=predictions.MAX_WORDS) for captioner in captioners]
    assert captions_on(page) == [caption.text or "(no words)" for caption in expected]

    words = group(page, "Choose a word")
    place = min(2, len(expected[0].words) - 1)
    words.get_by_role("radio").nth(place).check()
    word = expected[0].words[place]
    page.get_by_alt_text(f"bright where the model looked for “{word}”").wait_for()
    others = group(page, f"Instead of “{word}”")
    labels = [
        re.fullmatch(r"(\S+) +(?:under )?([\d.]+) %", label).groups()
        for label in others.locator("label").all_inner_texts()
    ]
    known = dict(captioners[0].next_words(features(captioners[0], image), expected[0].words, predictions.TOP)[place])
    assert [label[0] for label in labels[: len(known)]] == [key if key != "<END>" else "(end)" for key in known]
    assert sum(float(percent) for _, percent in labels) <= 100.5

    other = next(key for key in known if key not in (word, "<END>"))
    others.get_by_role("radio", name=other, exact=False).first.check()
    beginning = [*expected[0].words[:place], other]
    changed = captioners[0].caption(image, beam=5, max_length=predictions.MAX_WORDS, beginning=beginning)
    page.locator("figcaption b", has_text=changed.text).first.wait_for()
    assert captions_on(page)[1] == (expected[1].text or "(no words)")  # the other model's caption stays
    assert changed.words[: place + 1] == beginning

    group(page, "Choose a word", 1).get_by_role("radio").first.check()
    page.get_by_text("it has no attention to show").wait_for()


def features(captioner, path):
    return web.open_file(path, [captioner]).features[0]


@in_a_browser
def test_a_chosen_word_shows_attention_gradient_and_occlusion_and_survives_a_slider(page, trained_cells, captioners):
    upload(page, trained_cells / "photo.png")
    first = captions_on(page)[0].split()
    group(page, "Choose a word").get_by_role("radio").nth(1).check()
    figure = page.locator("figure").first
    page.get_by_alt_text(f"bright at the regions that speak for “{first[1]}”").wait_for()
    assert figure.locator("img").count() == 3
    page.get_by_role("button", name="Beam width and temperature").click()
    page.wait_for_timeout(500)
    page.locator("input[type=number]").first.fill("1")
    page.keyboard.press("Enter")
    path = trained_cells / "photo.png"
    wanted = captioners[0].caption(path, beam=1, max_length=predictions.MAX_WORDS, beginning=first[:2])
    page.locator("figcaption b", has_text=re.compile(f"^{wanted.text}$")).first.wait_for()
    assert group(page, "Choose a word").get_by_role("radio").nth(1).is_checked()
    assert figure.locator("img").count() == 3


@in_a_browser
def test_a_changed_model_writes_other_captions(page, trained_cells, captioners):
    path = trained_cells / "photo.png"
    upload(page, path)
    before = captions_on(page)
    page.get_by_label("Change in the model").click()
    page.get_by_role("option", name="output gate o = 0").click()
    page.get_by_text("a part of the model is changed").first.wait_for()
    for captioner, text in zip(captioners, captions_on(page)):
        found = web.predict(captioner, features(captioner, path), 5, 0, (), "output gate o = 0")
        assert found.broken and (found.caption.text or "(no words)") == text
    page.get_by_label("Change in the model").click()
    page.get_by_role("option", name="attention uniform").click()  # the LSTM has none: it stays as it is
    page.locator("figcaption b", has_text=re.compile(f"^{before[1]}$")).first.wait_for()
    assert page.get_by_text("a part of the model is changed").count() == 1


@in_a_browser
def test_the_first_screen_of_a_phone_shows_a_caption(browser, site):
    with browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as context:
        page = opened(context, site)
        for selector in ("figcaption b", "figure img"):
            box = page.locator(selector).first.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 844, selector


@in_a_browser
def test_beam_width_and_temperature_change_the_captions(page, trained_cells, captioners):
    upload(page, trained_cells / "photo.png")
    captions_on(page)
    page.get_by_role("button", name="Beam width and temperature").click()
    beam, temperature = (page.locator("input[type=number]").nth(k) for k in range(2))
    sync_api.expect(beam).to_have_value("5")
    page.wait_for_timeout(500)  # after a panel opens, Gradio sets its values once more
    beam.fill("-3")  # used as 1
    page.keyboard.press("Enter")
    greedy = captioners[0].caption(trained_cells / "photo.png", beam=1, max_length=predictions.MAX_WORDS)
    page.locator("figcaption b", has_text=re.compile(f"^{greedy.text}$")).first.wait_for()
    temperature.fill("2")
    page.keyboard.press("Enter")
    seen = set()
    for _ in range(5):
        page.get_by_role("button", name="Caption again").click()
        page.wait_for_timeout(300)
        seen.add(captions_on(page)[0])
    assert len(seen) > 1


@in_a_browser
def test_the_page_works_with_the_keyboard_alone(page):
    def tab_to(selector):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the keyboard doesn't reach {selector}")

    tab_to(".gallery-item")
    page.keyboard.press("Enter")
    captions_on(page)
    tab_to("input[type=radio]")
    page.keyboard.press("Space")
    group(page, "Instead of").wait_for()
    for key, place in (("ArrowRight", 1), ("ArrowUp", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        word = group(page, "Choose a word").get_by_role("radio").nth(place)
        sync_api.expect(word).to_be_checked()
        sync_api.expect(word).to_be_focused()


@in_a_browser
def test_unusable_files_are_refused_with_a_message(page, tmp_path):
    (tmp_path / "<img src=x onerror=alert(1)>.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    Image.new("1", (60000, 60000)).save(tmp_path / "bomb.png")
    Image.new("L", (12000, 12000)).save(tmp_path / "large.png")
    image = Image.effect_noise((300, 200), 50)
    image.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    (tmp_path / "heavy.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes() + bytes(21_000_000))
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    for name, message in {
        "<img src=x onerror=alert(1)>.png": "This file can not be used: it is not an image of a known kind (JPEG, ",
        "empty.jpg": "This file can not be used: it is not an image of a known kind (JPEG, ",
        "drawing.svg": "This file can not be used: it is not an image of a known kind (JPEG, ",
        "bomb.png": "This file can not be used: it is far too large.",
        "large.png": "This file can not be used: it is too large: 12000x12000 pixels.",
        "cut.jpg": "This file can not be used: image file is truncated",
        "heavy.jpg": "exceed the maximum allowed size of 20.0 Mb",
        "page.html": "Invalid file type: page.html",
    }.items():
        upload(page, tmp_path / "whole.jpg")
        captions_on(page)
        page.reload()
        page.locator("figure img").first.wait_for()  # of the first example
        sent = message.startswith("This file")
        upload(page, tmp_path / name, refused=not sent)
        page.get_by_text(message).wait_for()
        assert page.locator("figure").count() == (0 if sent else len(CELLS))
    upload(page, tmp_path / "whole.jpg")  # and the page still works
    captions_on(page)


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible_in_every_width_and_colour_scheme(browser, site, trained_cells, scheme, width):
    phone = width < 500
    size = {"width": width, "height": 844}
    with browser.new_context(viewport=size, color_scheme=scheme, is_mobile=phone, has_touch=phone) as context:
        page = opened(context, site)
        assert_accessible(page)
        upload(page, trained_cells / "photo.png")
        captions_on(page)
        page.get_by_role("radio").first.check()
        group(page, "Instead of").wait_for()
        page.get_by_role("button", name="Beam width and temperature").click()
        page.wait_for_timeout(500)  # until the panel has its final colours
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_a_browser
def test_the_page_requests_nothing_from_the_internet(browser, site, trained_cells):
    with browser.new_context() as context:
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        page = opened(context, site)
        upload(page, trained_cells / "photo.png")
        captions_on(page)
        page.wait_for_timeout(500)
    assert asked and [url for url in asked if not url.startswith((site[0], "data:", "blob:"))] == []


def test_fifty_visitors_at_once_all_get_their_captions(site, tmp_path, captioners):
    paths = [tmp_path / f"{k}.png" for k in range(50)]
    for k, path in enumerate(paths):
        Image.linear_gradient("L").rotate(7 * k).save(path)
    together = threading.Barrier(50)

    def visit(path):
        visitor = gradio_client.Client(site[0], verbose=False, download_files=False)
        together.wait(timeout=120)
        answer = visitor.predict(gradio_client.handle_file(path), 3, 0, api_name="/caption")
        return [html.unescape(text) for text in re.findall("<b>(.*?)</b>", str(answer))]

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(visit, paths))
    for path, answer in zip(paths, answers):
        expected = [captioner.caption(path, beam=3, max_length=predictions.MAX_WORDS).text for captioner in captioners]
        assert answer == [text or "(no words)" for text in expected]


def test_other_machines_and_other_files_are_out_of_reach(site):
    port = int(site[0].rstrip("/").split(":")[-1])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):  # it listens at one address, not at all of them
        socket.create_connection(("127.0.0.2", port))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{site[0]}gradio_api/file=/etc/hostname")
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        for method in ("GET", "OPTIONS"):  # a page of the web that gave its name our address (DNS rebinding)
            headers = {"Host": host, "Origin": f"http://{host}", "Access-Control-Request-Method": "POST"}
            with pytest.raises(urllib.error.HTTPError, match="421") as refused:
                urllib.request.urlopen(urllib.request.Request(site[0], headers=headers, method=method))
            assert "Access-Control-Allow-Origin" not in refused.value.headers
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "192.168.1.7"):
        assert urllib.request.urlopen(urllib.request.Request(site[0], headers={"Host": host})).status == 200
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    assert '"error"' in ask(site, file, 3, 0)  # it was not uploaded


def ask(site, *arguments):
    """The answer of the page's API."""
    url = f"{site[0]}gradio_api/call/caption"
    question = urllib.request.Request(
        url, json.dumps({"data": arguments}).encode(), {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(question))["event_id"]
    return urllib.request.urlopen(f"{url}/{event}").read().decode()


def test_an_upload_is_soon_deleted(site, trained_cells):
    address, folder = site
    visitor = gradio_client.Client(address, verbose=False)
    visitor.predict(gradio_client.handle_file(trained_cells / "photo.png"), 3, 0, api_name="/caption")
    uploads = list(folder.rglob("photo.png"))
    deadline = time.time() + 3 * KEPT
    while any(path.exists() for path in uploads) and time.time() < deadline:
        time.sleep(1)
    assert uploads and not any(path.exists() for path in uploads)


def test_the_current_word_is_always_among_the_choices(captioners, trained_cells):
    opened_image = web.open_file(trained_cells / "photo.png", captioners)
    prediction = web.predict(captioners[0], opened_image.features[0], beam=1, temperature=0)
    rare = captioners[0].model.idx_to_word[-1]
    prediction = web.predict(captioners[0], opened_image.features[0], beam=1, temperature=0, beginning=[rare])
    choices, here = web.alternatives(prediction, 0)
    assert (
        here == rare
        and rare in [word for _, word in choices]
        and len(choices) in (predictions.TOP, predictions.TOP + 1)
    )
    prediction = web.predict(captioners[0], opened_image.features[0], beam=1, temperature=0, beginning=[rare, "<END>"])
    assert web.words_to_choose(prediction) == [(rare, 0), ("(end)", 1)]
    assert web.alternatives(prediction, 1)[1] == "<END>"
    found = web.explain(captioners[0].model, opened_image.features[0], prediction.caption.words)
    assert f"<b>{rare}</b>" in web.draw_figure(opened_image, prediction, 1, found)


def test_a_calibrated_model_says_on_the_page_how_sure_it_is(captioners, trained_cells):
    opened_image = web.open_file(trained_cells / "photo.png", captioners)
    prediction = web.predict(captioners[0], opened_image.features[0], beam=1, temperature=0)
    assert "sure" not in web.draw_figure(opened_image, prediction)
    for familiar in (True, False):
        caption = prediction.caption._replace(sure=0.412, familiar=familiar)
        shown = web.draw_figure(opened_image, prediction._replace(caption=caption))
        assert "; 41 % sure" in shown and ("is not like those" in shown) != familiar


def test_a_page_that_was_open_too_long_says_that_its_image_is_gone(captioners):
    with web.gr.Blocks():
        column = web.Column(0, captioners[0], "title")
    for choose in (lambda: column.look(None, None, 0), lambda: column.continue_caption(None, None, 0, "a", 3, 0)):
        with pytest.raises(web.gr.Error, match="no longer has this image"):
            choose()


def test_wrong_arguments_are_refused(trained_cells, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # demo.main sets it; this restores it after the test
    checkpoint = ["--checkpoint", str(trained_cells / "rnn_best.pt")]
    with pytest.raises(InputError, match="there are no images that can be read in"):
        demo.main([*checkpoint, "--examples", str(tmp_path)])
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="there are no images that can be read in"):
        demo.main([*checkpoint, "--examples", str(tmp_path)])
    assert "text.png: it is not an image of a known kind" in capsys.readouterr().err
    with pytest.raises(InputError, match="missing.pt"):
        demo.main(["--checkpoint", str(tmp_path / "missing.pt")])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"can't use 127.0.0.1, port {port}: Address already in use"):
            demo.main([*checkpoint, "--port", str(port)])
    with pytest.raises(InputError, match="can't use no.such.host.invalid, port any: "):
        demo.main([*checkpoint, "--host", "no.such.host.invalid"])
    with pytest.raises(SystemExit):
        demo.main([*checkpoint, "--port", "80000"])
    assert "80000 is not a port" in capsys.readouterr().err


def test_without_gradio_the_message_says_what_to_install():
    code = "import sys; sys.modules['gradio'] = None; from rnn_lstm_captioning.commands import common, demo; "
    code += "common.run_command(demo.main)"
    command = [sys.executable, "-c", code, "--checkpoint", "x.pt"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2 and "pip install -r requirements-demo.txt" in process.stderr
    assert "Traceback" not in process.stderr
    code = "import sys; sys.modules['gradio'] = None; import rnn_lstm_captioning.classroom.page"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1 and "ModuleNotFoundError: the page needs Gradio" in process.stderr
