"""The trained captioner in models/, which users meet first."""

from pathlib import Path

import pytest
import torch
from helpers import run_test
from torch.nn.functional import interpolate

from rnn_lstm_captioning import Decoding, load_captioner
from rnn_lstm_captioning.commands.build import main as build
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.evaluation.confidence import agreement
from rnn_lstm_captioning.evaluation.metrics import score_captions

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "flickr8k.safetensors"
FLICKR = ROOT / "datasets" / "flickr8k"


@pytest.fixture(scope="module")
def captioner():
    return load_captioner(MODEL, "cpu")


def test_it_is_small_and_says_what_it_is(captioner):
    assert MODEL.stat().st_size <= 10_000_000
    assert captioner.model.cell_type == "attn" and len(captioner.model.idx_to_word) == 2538
    assert captioner.confidence is not None
    card = (MODEL.parent / "README.md").read_text()
    size = captioner.stored_size
    assert "2,538" in card and f"{size} x {size} pixels" in card and "@" not in card


def test_drawings_are_not_like_its_photographs(captioner):
    scenes = make_scenes(num_train=1, num_val=12)["val_images"].float()
    images = interpolate(scenes, size=captioner.stored_size, mode="bilinear", antialias=True).byte()
    captions = captioner.caption_images(images, Decoding(max_length=3))
    assert sum(not caption.familiar for caption in captions) >= 10


def test_the_command_of_the_readme_captions_an_image(trained_cells, capsys):
    photo = str(trained_cells / "photo.png")
    run_test("attn", ["--checkpoint", str(MODEL), "--image", photo])
    assert capsys.readouterr().out.startswith(f"{photo}: ")


@pytest.mark.skipif(not FLICKR.exists(), reason="datasets/flickr8k is not here")
def test_it_describes_photographs_that_it_has_not_seen(captioner, tmp_path):
    names = (FLICKR / "dev.txt").read_text().splitlines()
    for split, chosen in (("train", names[:2]), ("val", names[10::20])):
        (tmp_path / f"{split}.txt").write_text("\n".join(chosen))
    lists = ["--train-list", str(tmp_path / "train.txt"), "--val-list", str(tmp_path / "val.txt")]
    source = ["--images", str(FLICKR / "images"), "--captions", str(FLICKR / "captions.txt")]
    build([*source, *lists, "--size", str(captioner.stored_size), "--out", str(tmp_path / "dev.pt")])
    val = load_captions(tmp_path / "dev.pt").splits["val"]
    captions = captioner.caption_images(val.images, Decoding.recommended())
    scores, _ = score_captions([caption.text for caption in captions], val.references)
    assert scores["CIDEr"] > 45 and scores["BLEU-4"] > 17
    said = torch.tensor(agreement([caption.words for caption in captions], val.references)).mean()
    sure = torch.tensor([caption.sure for caption in captions]).mean()
    assert (said - sure).abs() < 0.1
    assert sum(caption.familiar for caption in captions) >= 45
