"""Fixtures that several test files share."""

import os

# the tensors of the tests are small; beside another busy process, two threads that wait for each other take minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import CELLS, run_train
from hypothesis import settings
from PIL import Image

from rnn_lstm_captioning.data.scenes import make_scenes

os.environ.setdefault("MPLBACKEND", "Agg")
settings.register_profile("deterministic", deadline=None, derandomize=True, database=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def scenes_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes.pt"
    torch.save(make_scenes(num_train=20, num_val=4), path)
    return path


@pytest.fixture(scope="session")
def trained_cells(scenes_file, tmp_path_factory):
    """A folder with CELL_best.pt for every cell, trained until its captions contain words, and photo.png."""
    folder = tmp_path_factory.mktemp("trained")
    flags = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 16 --wordvec-dim 8 --quiet --epochs 10"
    flags += " --learning-rate 0.01 --batch-size 10"
    for cell in CELLS:
        run_train(cell, ["--data", str(scenes_file), "--out", str(folder), "--device", "cpu", *flags.split()])
    Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 50).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; for the tests that are marked in_a_browser."""
    from in_browser import CHROMIUM, sync_api

    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags.split())
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # run_command turns it on, but hypothesis needs denormal floats
