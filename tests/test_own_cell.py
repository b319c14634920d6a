"""A learner's own functions train a captioner. The losses and the captions equal those of our cell."""

from pathlib import Path

import pytest
import torch
from helpers import CELLS, CELLS_BY_NAME, SOLUTION, run_test, run_train

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.classroom import own_cell
from rnn_lstm_captioning.classroom.own_cell import check_own_cell, find_cell
from rnn_lstm_captioning.commands import check, train
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.model.checkpoint import load_checkpoint

LEARNERS = Path(__file__).parent / "learners"
SMALL = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 16 --wordvec-dim 8 --batch-size 10 --quiet"
SMALL = [*SMALL.split(), "--device", "cpu", "--epochs", "3", "--learning-rate", "0.01"]


def history(folder, cell):
    rows = load_checkpoint(folder / f"{cell}_last.pt").training["history"]
    return [row["val_loss"] for row in rows]


@pytest.fixture(scope="module")
def ours(scenes_file, tmp_path_factory):
    """A folder with checkpoints of all cells, trained with our own functions."""
    folder = tmp_path_factory.mktemp("ours")
    for cell in CELLS:
        run_train(cell, ["--data", str(scenes_file), "--out", str(folder), *SMALL])
    return folder


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("file", [SOLUTION, LEARNERS / "in_torch.py"], ids=["numpy", "torch"])
def test_right_functions_train_like_ours(file, cell, ours, scenes_file, tmp_path):
    if f"{CELLS_BY_NAME[cell].prefix}_forward" not in file.read_text():
        pytest.skip(f"{file.name} has no {cell}; solution.py must have every cell")
    flags = ["--data", str(scenes_file), "--out", str(tmp_path), *SMALL, "--unchecked"]  # checked in test_check.py
    run_train(cell, [*flags, "--cell", str(file)])
    assert history(tmp_path, cell) == pytest.approx(history(ours, cell), rel=1e-4)
    images = load_captions(scenes_file).splits["val"].images
    texts = [
        [c.text for c in load_captioner(f / f"{cell}_best.pt", "cpu").caption_images(images)] for f in (tmp_path, ours)
    ]
    assert texts[0] == texts[1]
    run_test(cell, ["--checkpoint", str(tmp_path / f"{cell}_best.pt"), "--data", str(scenes_file), "--num-samples", "0",
                    "--out", str(tmp_path)])  # fmt: skip


RNN = """
import {kind}

def rnn_forward(x, h0, Wx, Wh, b):
    h, out = h0, []
    for t in range(x.shape[1]):
        h = {kind}.tanh(x[:, t] @ Wx + h @ Wh + b){change}
        out.append(h)
    return {kind}.stack(out, 1)
"""


def write(folder, kind="torch", change=""):
    (folder / "mine.py").write_text(RNN.format(kind=kind, change=change))
    return folder / "mine.py"


def test_torch_code_without_a_backward_trains_through_autograd(ours, scenes_file, tmp_path, capsys):
    file = write(tmp_path)
    run_train("rnn", ["--data", str(scenes_file), "--out", str(tmp_path), *SMALL, "--cell", str(file)])
    assert history(tmp_path, "rnn") == pytest.approx(history(ours, "rnn"), rel=1e-4)
    assert "mine.py, checked and right" in capsys.readouterr().out


def test_the_learners_functions_are_really_called(ours, scenes_file, tmp_path):
    file = write(tmp_path, change=" * 0.5")
    run_train("rnn", ["--data", str(scenes_file), "--out", str(tmp_path), *SMALL, "--cell", str(file), "--unchecked"])
    assert history(tmp_path, "rnn") != pytest.approx(history(ours, "rnn"), rel=1e-4)


def test_missing_functions_are_named(tmp_path):
    with pytest.raises(InputError, match=r"mine.py must define rnn_backward to train the rnn"):
        check_own_cell(write(tmp_path, kind="numpy"), "rnn")
    with pytest.raises(InputError, match=r"mine.py must define lstm_forward and lstm_backward to train the lstm"):
        check_own_cell(tmp_path / "mine.py", "lstm")
    check.main([str(tmp_path / "new.py"), "--new"])
    with pytest.raises(InputError, match=r"new.py must define gru_forward and gru_backward"):
        check_own_cell(tmp_path / "new.py", "gru")
    with pytest.raises(InputError, match=f"this is neither a file nor a cell; the cells are {', '.join(CELLS)}"):
        run_train("rnn", ["--cell", "no such cell"])
    (tmp_path / "broken.py").write_text("x = (")
    with pytest.raises(InputError, match=r"broken.py can't be imported: SyntaxError in line 1"):
        find_cell(tmp_path / "broken.py")


@pytest.mark.parametrize(
    "change, message",
    [
        (" + 0.1", r"mine.py: rnn_forward: h is off by up to .*; --unchecked trains with it anyway"),
        (".detach()", r"autograd can't find gradients through it: write rnn_backward too"),
        ("; h = h.detach() * 0.5 + h * 0.5", "with autograd, its gradient dx is wrong"),
        ("[:, :1]", r"rnn_forward: "),
    ],
)
def test_a_wrong_cell_is_refused_with_the_checkers_sentence(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        check_own_cell(write(tmp_path, change=change), "rnn")


def test_a_wrong_backward_is_refused(tmp_path):
    right = SOLUTION.read_text()
    (tmp_path / "mine.py").write_text(right.replace("dh[:, t] + dprev_h, cache[t])", "dh[:, t], cache[t])", 1))
    with pytest.raises(InputError, match="mine.py: rnn_backward: .* is not carried"):
        check_own_cell(tmp_path / "mine.py", "rnn")


def test_the_cell_of_a_file_is_found(tmp_path):
    assert find_cell(write(tmp_path)) == "rnn"
    several = SOLUTION
    with pytest.raises(InputError, match=rf"has several cells, {', '.join(CELLS)}: choose one, such as --cell .*:rnn"):
        find_cell(several)
    assert train.choose_cell(f"{several}:gru", None) == train.ChosenCell("gru", several)
    assert train.choose_cell(str(several), "lstm") == train.ChosenCell("lstm", several)
    assert train.choose_cell("gru", None) == train.ChosenCell("gru", None)
    assert train.choose_cell(None, None).name == "lstm"
    with pytest.raises(
        InputError, match="this script trains the lstm; use python -m rnn_lstm_captioning train --cell gru"
    ):
        train.choose_cell("gru", "lstm")
    (tmp_path / "none.py").write_text("x = 1")
    with pytest.raises(InputError, match="none.py has none of the functions rnn_forward, lstm_forward, gru_forward"):
        find_cell(tmp_path / "none.py")


def test_the_checkers_last_line_is_the_command_that_trains(tmp_path, capsys):
    text = SOLUTION.read_text()
    start = text.index("def gru_step_forward")
    (tmp_path / "lstm.py").write_text(text[:start])
    check.main([str(tmp_path / "lstm.py")])
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"train with it: python train_lstm.py --cell {tmp_path / 'lstm.py'}"
    )


def test_an_own_cell_changes_neither_the_weights_nor_the_random_numbers(ours):
    captioner = load_captioner(ours / "rnn_best.pt", "cpu").model
    weights = {name: value.clone() for name, value in captioner.cell.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    own_cell.use_own_cell(captioner, LEARNERS / "in_torch.py")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(captioner.cell, CELLS_BY_NAME["rnn"])
    assert all(torch.equal(captioner.cell.state_dict()[name], value) for name, value in weights.items())
