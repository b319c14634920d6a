"""Files of an earlier version still work: a checkpoint, a caption file and a feature cache of format 2. The code before
the split into packages (October 2026) wrote them. The first two are stored compressed."""

import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_test, run_train

from rnn_lstm_captioning import load_captioner
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.model.checkpoint import load_checkpoint
from rnn_lstm_captioning.model.decoding import Decoding
from rnn_lstm_captioning.training.features import prepare_pairs

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def folder(tmp_path):
    """A folder with the files as the earlier version wrote them."""
    for name in ("format2_scenes.pt", "format2_lstm_last.pt"):
        (tmp_path / name).write_bytes(lzma.decompress((FIXTURES / f"{name}.xz").read_bytes()))
    (cache,) = FIXTURES.glob("*.npy")
    shutil.copy(cache, tmp_path)
    os.utime(tmp_path / "format2_scenes.pt", ns=(1_700_000_000_000_000_000,) * 2)  # part of the cache's key
    return tmp_path


def test_an_old_checkpoint_writes_the_same_captions(folder):
    captioner = load_captioner(folder / "format2_lstm_last.pt", "cpu")
    assert captioner.model.image_input == "first-token" and captioner.stored_size == 112
    images = load_captions(folder / "format2_scenes.pt").splits["val"].images
    found = captioner.caption_images(images, Decoding(beam=3))
    assert found[0].text == "in big big big red cross above above cross the small red cross cross above"
    assert [c.log_prob for c in found] == pytest.approx([-47.63829, -47.50288, -47.50741], rel=1e-4)


def test_the_features_are_those_of_an_old_cache(folder):
    """An old cache is not used, because its name does not depend on what is in the caption file; a new one is made."""
    (old,) = folder.glob("*.npy")
    captioner = load_captioner(folder / "format2_lstm_last.pt", "cpu").model
    pairs = prepare_pairs(captioner, load_captions(folder / "format2_scenes.pt"), "val")
    expected = torch.from_numpy(np.load(old)).float().mean((2, 3), keepdim=True)
    assert pairs.features.shape == (3, 1024, 1, 1)
    assert torch.allclose(pairs.features.float(), expected, rtol=1e-2, atol=1e-3)
    assert len(list(folder.glob("*.npy"))) == 2


def test_an_old_run_can_be_evaluated_and_resumed(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run_test("lstm", ["--checkpoint", "format2_lstm_last.pt", "--num-samples", "1"])
    assert "loss 45.505 nats per caption, 3.555 nats per word" in capsys.readouterr().out
    before = load_checkpoint("format2_lstm_last.pt")
    flags = "--encoder shufflenet_v2_x0_5 --hidden-dim 12 --wordvec-dim 6 --batch-size 8 --learning-rate 0.01 --quiet"
    flags += " --image-input first-token --image-norm batchnorm --epochs 3 --device cpu"
    run_train("lstm", ["--data", "format2_scenes.pt", *flags.split(), "--resume", "format2_lstm_last.pt"])
    after = load_checkpoint("cv/lstm_last.pt")
    assert [row["epoch"] for row in after.training["history"]] == [1, 2, 3]
    assert after.training["history"][:2] == before.training["history"]
    assert not torch.equal(after.weights["cell.Wx"], before.weights["cell.Wx"])
