"""Every recipe runs, and its header names the commands that build its data and train with it."""

import shlex
from pathlib import Path

import pytest
import torch
from helpers import run_train

from rnn_lstm_captioning.commands.common import SCRIPTS
from rnn_lstm_captioning.commands.flags import build_flags
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.model.checkpoint import load_checkpoint

SCRIPTS = {f"train_{name}.py": cell for cell, name in SCRIPTS.items()}
RECIPES = sorted(Path("recipes").glob("*.args"))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "scenes.pt"
    torch.save(make_scenes(num_train=6, num_val=3), path)
    return path


def commands(recipe):
    """The command lines in a recipe's header, as lists of words."""
    header = "\n".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    lines = header.replace("\\\n", " ").splitlines()
    return [shlex.split(line.split("   ")[0]) for line in lines if line.startswith("python ") and "..." not in line]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(recipe, small_file, tmp_path):
    trains = [line for line in commands(recipe) if line[1] in SCRIPTS]
    cells = {SCRIPTS[line[1]] for line in trains} or {"attn"}
    assert all(f"@recipes/{recipe.name}" in line for line in trains)
    smaller = ["--data", small_file, "--encoder-weights", "none", "--image-size", "64", "--device", "cpu", "--quiet"]
    for cell in cells:
        first = []
        if "--self-critical" in recipe.read_text():  # it starts from the checkpoint of another recipe
            run_train(
                cell, [f"@{recipe.parent}/flickr8k.args", *map(str, smaller), "--dry-run", "--out", str(tmp_path)]
            )
            first = ["--init", str(tmp_path / f"dry-run/{cell}_last.pt")]
        run_train(cell, [f"@{recipe}", *map(str, smaller), *first, "--dry-run", "--out", str(tmp_path)])
        checkpoint = load_checkpoint(tmp_path / f"dry-run/{cell}_last.pt")
        assert checkpoint.encoder in recipe.read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_build_command_of_a_recipe_names_the_file_that_it_trains_on(recipe):
    builds = [line for line in commands(recipe) if line[1:4] == ["-m", "rnn_lstm_captioning", "build"]]
    for line in builds:
        args = build_flags().parse_args(line[4:])
        assert f"--data {args.out}" in recipe.read_text()
