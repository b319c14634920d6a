"""Figures: attention overlays, captioned images, loss curves; and the helpers in utils.py."""

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from rnn_lstm_captioning.evaluation.figures import (
    attention_overlay,
    save_attention,
    save_captioned_image,
    save_loss_curve,
)


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (1, 1), (2, 5)])
@pytest.mark.parametrize("size", [(112, 112), (90, 130)])
def test_overlay_is_bright_where_the_weight_is(grid, size):
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    for row in range(grid[0]):
        for column in range(grid[1]):
            weights = torch.zeros(grid)
            weights[row, column] = 1
            overlay = attention_overlay(image, weights)
            assert overlay.shape == image.shape and overlay.dtype == torch.uint8
            brightness = overlay.float().sum(0)
            peak = (brightness == brightness.max()).nonzero()
            region = torch.tensor([row, column])
            assert (peak * torch.tensor(grid) // torch.tensor(size) == region).all(1).any()
            y, x = ((region + 0.5) * torch.tensor(size) / torch.tensor(grid)).long()
            assert brightness[y, x] > 0.75 * brightness.max()
            elsewhere = brightness.clone()
            rows, columns = (
                slice(max(0, int((c - 0.9) * n / g)), int((c + 1.9) * n / g)) for c, n, g in zip(region, size, grid)
            )
            elsewhere[rows, columns] = 0
            assert elsewhere.max() < 0.5 * brightness.max()


def test_attention_visualizer_puts_the_word_above_the_image():
    image = torch.zeros(3, 112, 112, dtype=torch.uint8)
    for word in ("dog", "an-extraordinarily-long-word-for-a-picture"):
        result = utils.attention_visualizer(image, torch.full((4, 4), 1 / 16), word)
        assert result.shape == (3, 137, 112) and result.dtype == torch.uint8
        assert (result[:, :25] < 100).any() and (result[:, :25, [0, -1]] == 255).all()


def test_figures_are_written_to_the_given_files(tmp_path):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    save_captioned_image(tmp_path / "a.png", image, "a dog", ["a dog runs", "one dog"])
    save_captioned_image(tmp_path / "b.png", image, "", [])
    words = "one two three four five six seven".split()
    save_attention(tmp_path / "a", image, words, torch.softmax(torch.randn(9, 4, 4).flatten(1), 1).view(9, 4, 4))
    save_attention(tmp_path / "none", image, [], torch.zeros(9, 4, 4))
    history = [{"epoch": e, "train_loss": 3 / e, "val_loss": 4 / e} for e in (1, 2, 3)]
    save_loss_curve(tmp_path / "loss.png", history, "rnn")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.png", "a_attention.gif", "a_attention.png", "b.png", "loss.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "a_attention.gif") as gif:
        assert gif.n_frames == 7
    with Image.open(tmp_path / "a_attention.png") as grid:
        assert grid.size == (6 * 224, 2 * 249) and np.asarray(grid).std() > 10


def test_utils_has_the_helpers_of_the_courses():
    utils.reset_seed(3)
    first = torch.rand(2), np.random.rand()
    utils.reset_seed(3)
    assert torch.equal(first[0], torch.rand(2)) and first[1] == np.random.rand()
    assert utils.decode_captions(torch.tensor([[1, 4, 2, 0]]), ["", "", "", "", "dog"]) == ["dog"]
    assert utils.rel_error(torch.ones(2), torch.ones(2)) == 0 and callable(utils.compute_numeric_gradient)
