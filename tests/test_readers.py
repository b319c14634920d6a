"""Captions files of every kind, valid and damaged."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data.readers import read_captions
from rnn_lstm_captioning.data.vocabulary import build_vocabulary, tokenize

COCO = Path("datasets/coco_captions/captions_val2017.json")


def read(path, text):
    path.write_text(text, encoding="utf-8")
    report = []
    return *read_captions(path, report), "\n".join(report)


def test_coco_names_what_it_leaves_out(tmp_path):
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(4)] + [{"id": 2, "file_name": "other.jpg"}]
    texts = [(2, "two dogs "), (1, "one"), (2, "a pair"), (99, "nobody"), (0, " . "), (3, 5)]
    notes = [{"id": k, "image_id": image, "caption": text} for k, (image, text) in enumerate(texts)]
    captions, splits, report = read(tmp_path / "x.json", json.dumps({"images": images, "annotations": notes}))
    assert captions == {"2.jpg": ["two dogs", "a pair"], "1.jpg": ["one"]} and splits == {}
    assert "3 for 2 images" in report
    assert "image ids that occur twice: 1\n  2: 2.jpg, other.jpg" in report
    assert "captions without an image: 1\n  image 99: 'nobody'" in report
    assert "captions that are not text: 1\n  3.jpg: 5" in report
    assert "captions without a word in them: 1\n  0.jpg: '.'" in report
    assert "images without a caption: 1\n  3.jpg" in report


def test_karpathy_gives_its_splits(tmp_path):
    def image(name, split, *texts, **more):
        return {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in texts]} | more

    images = [
        image("a.jpg", "train", "one", "two"),
        image("b.jpg", "restval", "three", filepath="val2014"),
        image("c.jpg", "val", "four"),
        image("d.jpg", "test", "five"),
        image("e.jpg", "extra", "six"),
        image("f.jpg", "train"),
    ]
    captions, splits, report = read(tmp_path / "x.json", json.dumps({"images": images, "dataset": "x"}))
    assert captions["a.jpg"] == ["one", "two"] and captions["val2014/b.jpg"] == ["three"]
    assert splits == {"a.jpg": "train", "val2014/b.jpg": "train", "c.jpg": "val", "d.jpg": "test"}
    assert (
        "images of an unknown split: 1\n  e.jpg: extra" in report and "images without a caption: 1\n  f.jpg" in report
    )


@pytest.mark.parametrize(
    "text",
    [
        "1.jpg#0\tA dog , running .\n1.jpg#1\tIt runs\n2.jpg#0\tA cat\n",
        "image_name| comment_number| comment\n1.jpg| 0| A dog , running .\n1.jpg| 1| It runs\n2.jpg| 0| A cat\n",
        "image,caption\n1.jpg,A dog , running .\n1.jpg,It runs\n2.jpg,A cat\n",
        '\ufeffImage,Caption\r\n1.jpg,"A dog , running ."\r\n1.jpg,It runs\r\n\r\n2.jpg,"A cat"\r\n',
    ],
)
def test_flickr_files_and_a_plain_csv_are_read(tmp_path, text):
    captions, splits, _ = read(tmp_path / "captions.txt", text)
    assert captions == {"1.jpg": ["A dog , running .", "It runs"], "2.jpg": ["A cat"]} and splits == {}


def test_quotes_and_newlines_are_read_and_bad_lines_are_reported(tmp_path):
    text = (
        'image,caption\n1.jpg,"two\nlines, ""quoted"""\nonly-a-name.jpg\n2.jpg,\n../3.jpg,elsewhere\n/etc/4.jpg,too\n'
    )
    captions, _, report = read(tmp_path / "x.csv", text)
    assert captions == {"1.jpg": ['two\nlines, "quoted"']}
    assert "lines without a caption: 1\n  line 4: only-a-name.jpg" in report
    assert "captions without a word in them: 1" in report
    assert "image names that can't be used: 2\n  ../3.jpg\n  /etc/4.jpg" in report


GOOD = {
    "json": json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a"}]}),
    "karpathy": json.dumps({"images": [{"filename": "1.jpg", "split": "val", "sentences": [{"raw": "a"}]}]}),
    "csv": 'image,caption\n1.jpg,"a, b"\n2.jpg,c\n',
    "token": "1.jpg#0\ta b\n1.jpg#1\tc\n",
}


@settings(max_examples=600)
@given(st.sampled_from(sorted(GOOD)), st.integers(0, 200), st.integers(0, 12), st.text(max_size=6))
@example("json", 0, 200, "[" * 100_000)
@example("csv", 17, 0, '"')
@example("csv", 14, 0, "x" * 200_000)
@example("json", 12, 1, "1e999")
def test_a_mutated_file_is_read_or_named_in_the_message(tmp_path_factory, kind, position, cut, inserted):
    text = GOOD[kind]
    mutated = text[:position] + inserted + text[position + cut :]
    path = tmp_path_factory.mktemp("mutated") / "captions"
    path.write_bytes(mutated.encode("utf-8", "surrogatepass"))
    report = []
    try:
        captions, _ = read_captions(path, report)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert captions and report[0].startswith("captions: ")
        assert all(tokenize(text) for texts in captions.values() for text in texts)


@pytest.mark.skipif(not COCO.exists(), reason=f"{COCO} is not here")
def test_coco_val2017_agrees_with_an_independent_count():
    data = json.loads(COCO.read_text(encoding="utf-8"))
    captions, _ = read_captions(COCO, [])
    assert len(captions) == len(data["images"]) == 5000
    assert sum(map(len, captions.values())) == len(data["annotations"]) == 25014
    # counted without our tokeniser: all characters except letters, digits and inner apostrophes separate words
    counts = Counter()
    for note in data["annotations"]:
        text = "".join(c if c.isalnum() or c in "'’" else " " for c in note["caption"].lower()).replace("’", "'")
        words = [part for word in text.split() for part in _split_at_double_apostrophes(word)]
        counts.update(words)
    for threshold in (4, 5):
        vocabulary, _ = build_vocabulary((tokenize(t) for texts in captions.values() for t in texts), threshold)
        assert set(vocabulary[4:]) == {word for word, count in counts.items() if count >= threshold}


def _split_at_double_apostrophes(word):
    return [part.strip("'") for part in word.split("''") if part.strip("'")]
