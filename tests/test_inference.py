"""A checkpoint is enough to caption an image, and the image is prepared as in training."""

import math

import pytest
import torch
from helpers import run_train
from PIL import Image

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.commands.build import main as build
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.data.images import load_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, the caption file x.pt built from them (48 px), and checkpoints trained at 64 px."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "photos").mkdir()
    lines = ["image,caption"]
    for k in range(20):
        image = Image.linear_gradient("L").rotate(18 * k).resize((70 + k, 50)).convert("RGB")
        image.save(folder / f"photos/{k}.{'jpg' if k % 2 else 'png'}")
        lines.append(f"{k}.{'jpg' if k % 2 else 'png'},a gradient number {k % 4}")
    (folder / "captions.csv").write_text("\n".join(lines))
    common = ["--images", str(folder / "photos"), "--captions", str(folder / "captions.csv"), "--size", "48"]
    build([*common, "--out", str(folder / "x.pt"), "--word-threshold", "1", "--val-fraction", "0.3"])
    settings = "--encoder-weights none --encoder mobilenet_v3_small --hidden-dim 16 --wordvec-dim 8 --epochs 2 --quiet"
    size = ["--image-size", "64", "--device", "cpu", "--out", str(folder)]
    for cell, extra in (("attn", []), ("lstm", ["--image-input", "first-token", "--image-norm", "batchnorm"])):
        run_train(cell, ["--data", str(folder / "x.pt"), *settings.split(), *size, *extra])
    return folder


@pytest.mark.parametrize("cell", ["attn", "lstm"])
def test_a_checkpoint_captions_an_image_from_python(trained, cell):
    captioner = load_captioner(trained / f"{cell}_best.pt", device="cpu")
    caption = captioner.caption(trained / "photos/3.jpg", beam=3)
    assert caption.text == " ".join(caption.words) and math.isfinite(caption.log_prob) and caption.log_prob < 0
    if cell == "attn":
        assert caption.attention.shape == (len(caption.words), 2, 2)  # 64 pixels at stride 32
        torch.testing.assert_close(caption.attention.sum((1, 2)), torch.ones(len(caption.words)))
    else:
        assert caption.attention is None
    with Image.open(trained / "photos/3.jpg") as image:
        assert captioner.caption(image, beam=3).text == caption.text
    drawn = [captioner.caption(trained / "photos/3.jpg", temperature=3.0, generator=seeded(k)).text for k in (1, 1)]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match=r"missing.jpg: .*No such file"):
        captioner.caption(trained / "missing.jpg")
    (trained / "text.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"text.jpg: it is not an image of a known kind"):
        captioner.caption(trained / "text.jpg")


@pytest.mark.parametrize("cell", ["attn", "lstm"])
def test_a_caption_can_begin_with_given_words_and_has_alternatives(trained, cell):
    captioner = load_captioner(trained / f"{cell}_best.pt", device="cpu")
    images, _, _ = load_images([trained / "photos/3.jpg"], captioner.stored_size)
    features = captioner.model.encode(images)
    caption = captioner.caption_features(features)[0]
    words = captioner.next_words(features, caption.words, top=4)
    assert [of_place[0][0] for of_place in words[: len(caption.words)]] == caption.words  # greedy: the most probable
    log_prob = sum(math.log(of_place[0][1]) for of_place in words)
    assert log_prob == pytest.approx(caption.log_prob, abs=1e-4) or len(caption.words) == 15
    assert all([p for _, p in row] == sorted((p for _, p in row), reverse=True) and len(row) == 4 for row in words)
    begun = captioner.caption(trained / "photos/3.jpg", beginning="Number A", beam=2)
    assert begun.words[:2] == ["number", "a"]
    assert begun.text == captioner.caption(trained / "photos/3.jpg", beginning=["number", "a"], beam=2).text
    assert captioner.caption(trained / "photos/3.jpg", beginning=["a", "<END>"]).text == "a"
    with pytest.raises(InputError, match="the model does not know the word 'zebra'"):
        captioner.caption(trained / "photos/3.jpg", beginning="a zebra")
    with pytest.raises(InputError, match="the model does not know the word 'zebra'"):
        captioner.next_words(features, ["zebra"])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_an_image_is_transformed_as_in_training(trained):
    data = load_captions(trained / "x.pt")
    captioner = load_captioner(trained / "attn_best.pt", device="cpu")
    for split in data.splits.values():
        paths = [trained / "photos" / name for name in split.image_names]
        images, loaded, failed = load_images(paths, captioner.stored_size)
        assert loaded == paths and not failed and torch.equal(images, split.images)
        features = captioner.model.encode(images)
        assert captioner.model.image_encoder.image_size == 64 and features.shape[2:] == (2, 2)
    a = captioner.caption(paths[0], beam=1, no_repeats=False, no_bad_endings=False)
    b = captioner.caption_images(split.images[:1])[0]
    assert a.text == b.text and a.log_prob == b.log_prob


def test_a_checkpoint_needs_nothing_else(trained, tmp_path, monkeypatch):
    def no_download(*_, **__):
        raise AssertionError("a checkpoint must not fetch weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    moved = tmp_path / "moved.pt"
    moved.write_bytes((trained / "lstm_best.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    captioner = load_captioner(moved, device="cpu")
    assert captioner.model.image_input == "first-token" and captioner.stored_size == 48
    assert captioner.caption(trained / "photos/0.png").log_prob < 0


def test_a_checkpoint_of_format_1_still_loads(trained, tmp_path):
    checkpoint = torch.load(trained / "attn_best.pt", weights_only=True)
    checkpoint["format"] = 1
    for name in ("image_size", "image_input", "image_norm", "augment", "batching"):
        checkpoint["settings"].pop(name, None)
    torch.save(checkpoint, tmp_path / "old.pt")
    captioner = load_captioner(tmp_path / "old.pt", device="cpu")
    assert captioner.model.image_encoder.image_size is None
    checkpoint["format"] = 99
    torch.save(checkpoint, tmp_path / "new.pt")
    with pytest.raises(InputError, match="has format 99; this version of the project reads 1 to 3"):
        load_captioner(tmp_path / "new.pt")
