"""The results page: which examples it shows, and what it contains."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from helpers import run_test
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import Decoding, InputError, load_captioner, load_captions
from rnn_lstm_captioning.commands import test
from rnn_lstm_captioning.evaluation.captions import Caption
from rnn_lstm_captioning.evaluation.results_page import Scored, choose_examples, save_results_page
from rnn_lstm_captioning.model.checkpoint import load_checkpoint


@given(st.lists(st.floats(0, 1000), max_size=40), st.integers(1, 9))
def test_examples_are_the_best_the_median_and_the_worst(scores, count):
    chosen = choose_examples(scores, count)
    rows = [row for part in chosen.values() for row in part]
    assert len(set(rows)) == len(rows) == 3 * min(count, len(scores) // 3)
    values = [scores[row] for row in rows]
    assert values == sorted(values, reverse=True)
    if rows:
        assert values[0] == max(scores) and values[-1] == min(scores)


def test_the_page_is_one_file_with_images_and_escaped_text(tmp_path):
    N = 7
    images = torch.randint(0, 256, (N, 3, 40, 40), dtype=torch.uint8)
    captions = [Caption(f"<b>{k} & one", ["<b>", "&"], -1.0, torch.full((2, 2, 2), 0.25)) for k in range(N)]
    captions[3] = Caption("", [], -9.0, torch.zeros(0, 2, 2))
    per_image = {"BLEU-4": [1.0] * N, "CIDEr": [float(k) for k in range(N)]}
    rows = {"the model": {"BLEU-4": 12.34, "CIDEr": 5.0}}
    references = [["a <i>dog</i>"], *[["x", "y"]] * (N - 1)]
    scored = Scored(images, captions, references, per_image, rows)
    save_results_page(tmp_path / "r.html", "a < b", "beam 5", scored, count=2)

    class Reader(HTMLParser):
        tags, text = [], ""

        def handle_starttag(self, tag, attributes):
            self.tags.append((tag, dict(attributes)))

        def handle_data(self, data):
            self.text += data

    reader = Reader()
    reader.feed((tmp_path / "r.html").read_text())
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 11 and all(src.startswith("data:image/jpeg;base64,") for src in sources)  # 6 + 5
    assert not any(tag in ("b", "i") for tag, _ in reader.tags)
    assert "<b>6 & one" in reader.text and "a <i>dog</i>" in reader.text and "12.3" in reader.text
    assert reader.text.index("<b>6 &") < reader.text.index("<b>0 &")


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["COCO_val2014_000000391895.jpg", "000000000139.jpg"], [391895, 139]),
        (["10002_693b08cb0e.jpg", "10017_577c3a7d70.jpg"], ["10002_693b08cb0e.jpg", "10017_577c3a7d70.jpg"]),
        (["dog.jpg", "cat.jpg"], ["dog.jpg", "cat.jpg"]),
        (["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"]),
        (None, [0, 1]),
    ],
)
def test_image_ids_are_those_of_coco(names, ids):
    split = SimpleNamespace(image_names=names, images=torch.zeros(2, 3, 4, 4))
    assert test.image_ids(split) == ids


def test_captions_are_written_in_cocos_result_format(trained_cells, tmp_path, capsys):
    checkpoint = str(trained_cells / "lstm_best.pt")
    out = tmp_path / "results.json"
    run_test("lstm", ["--checkpoint", checkpoint, "--results", str(out), "--out", str(tmp_path), "--num-samples", "0"])
    rows = json.loads(out.read_text())
    captioner = load_captioner(checkpoint, "cpu")
    images = load_captions(load_checkpoint(checkpoint).data).splits["val"].images
    assert [row["caption"] for row in rows] == [
        caption.text for caption in captioner.caption_images(images, Decoding.recommended())
    ]
    assert all(row.keys() == {"image_id", "caption"} for row in rows) and len({row["image_id"] for row in rows}) == 4
    assert f"result format: {out}" in capsys.readouterr().out
    with pytest.raises(InputError, match="use one"):
        run_test("lstm", ["--checkpoint", checkpoint, "--results", str(out), "--image", "x.png"])
