"""Tests that need real photographs. They are skipped if the photographs are not in datasets/ (see the README)."""

from pathlib import Path

import pytest
import torch

from rnn_lstm_captioning import CaptioningRNN, ImageEncoder
from rnn_lstm_captioning.commands.build import main as build
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.data.vocabulary import decode_captions
from rnn_lstm_captioning.training.features import encode_all

FLICKR = Path("datasets/flickr8k")
WEIGHTS = Path("datasets/weights/mobilenet_v2.pth")
pytestmark = [
    pytest.mark.skipif(
        not FLICKR.exists(),
        reason="datasets/flickr8k is not here: see the README, 'I want to train on my own images'",
    ),
    pytest.mark.skipif(not WEIGHTS.exists(), reason="datasets/weights/mobilenet_v2.pth is not here"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """60 training and 20 validation photographs of Flickr8k, with features from real weights."""
    folder = tmp_path_factory.mktemp("flickr")
    for split, source, count in (("train", "train", 60), ("val", "dev", 20)):
        names = (FLICKR / f"{source}.txt").read_text().splitlines()[:count]
        (folder / f"{split}.txt").write_text("\n".join(names))
    lists = ["--train-list", str(folder / "train.txt"), "--val-list", str(folder / "val.txt")]
    source = ["--images", str(FLICKR / "images"), "--captions", str(FLICKR / "captions.txt")]
    build([*source, *lists, "--out", str(folder / "x.pt"), "--word-threshold", "1"])
    data = load_captions(folder / "x.pt")
    encoder = ImageEncoder(name="mobilenet_v2", weights_file=WEIGHTS)
    return data, encoder, encode_all(encoder, data.splits["train"].images, stem=folder / "x.train")


def test_a_file_built_from_photographs_has_the_right_sizes(photographs):
    data, _, features = photographs
    train, val = data.splits["train"], data.splits["val"]
    assert (len(train.images), len(train), len(val.images), len(val)) == (60, 300, 20, 100)
    assert features.shape == (60, 1280, 4, 4)
    assert all(len(references) == 5 for references in val.references)


@pytest.mark.parametrize("cell, bar", [("rnn", 0.5), ("lstm", 3), ("gru", 3), ("attn", 3)])
def test_fifty_pairs_can_be_memorised(photographs, cell, bar):
    data, encoder, features = photographs
    train = data.splits["train"]
    rows = torch.arange(0, 250, 5)  # one caption for each of 50 photographs
    captioner = CaptioningRNN(data.word_to_idx, cell_type=cell, ignore_index=0, image_encoder=encoder)
    captioner.standardize(features)
    optimizer = torch.optim.AdamW([p for p in captioner.parameters() if p.requires_grad], lr=1e-3, fused=True)
    for _ in range(80):
        for batch in rows[torch.randperm(50)].split(32):
            loss = captioner.loss(features[train.image_index[batch]], train.captions[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(captioner.parameters(), 5)
            optimizer.step()
    with torch.no_grad():
        assert captioner.loss(features[train.image_index[rows]], train.captions[rows]).item() < bar
    # and the captioner predicts the captions that it was trained on
    sampled = captioner.sample(train.images[:50])
    texts = decode_captions(sampled if cell != "attn" else sampled[0], data.idx_to_word)
    trained_on = decode_captions(train.captions[rows], data.idx_to_word)
    assert sum(text == right for text, right in zip(texts, trained_on)) >= 40
