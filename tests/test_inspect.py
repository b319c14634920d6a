"""What `inspect` writes is what the model did."""

import json

import pytest
import torch
from PIL import Image

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.cells import LSTM, RNN
from rnn_lstm_captioning.inspect import GATES, main, norms_backwards


@pytest.mark.parametrize("cell", ["rnn", "lstm", "attn"])
def test_a_caption_from_inside(cell, trained_cells, tmp_path):
    checkpoint, photo = str(trained_cells / f"{cell}_best.pt"), str(trained_cells / "photo.png")
    main(["--checkpoint", checkpoint, "--image", photo, "--out", str(tmp_path), "--top", "3"])
    found = json.loads((tmp_path / "photo_inside.json").read_text())
    caption = load_captioner(checkpoint, "cpu").caption(photo)
    assert found["caption"] == caption.text and found["cell"] == cell
    assert sum(step["log_prob"] for step in found["steps"]) == pytest.approx(caption.log_prob, abs=1e-4)
    for step in found["steps"]:
        probs = [p for _, p in step["top"]]
        assert len(probs) == 3 and probs == sorted(probs, reverse=True) and step["top"][0][0] == step["word"]
        assert (step["gates"] is None) == (cell == "rnn")
        if cell != "rnn":
            assert all(len(step["gates"][gate]) == 16 and min(step["gates"][gate]) >= 0 for gate in GATES[:3])
        if cell == "attn":
            assert torch.tensor(step["attention"]).sum().item() == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "photo_inside.png").size[0] > 600


def test_gates_explain_the_cell_state(trained_cells, tmp_path):
    main(
        [
            "--checkpoint",
            str(trained_cells / "lstm_best.pt"),
            "--image",
            str(trained_cells / "photo.png"),
            "--out",
            str(tmp_path),
        ]
    )
    steps = json.loads((tmp_path / "photo_inside.json").read_text())["steps"]
    o, c = (torch.tensor(values) for values in (steps[1]["gates"]["output gate o"], steps[1]["cell"]))
    assert (o * torch.tanh(c)).norm().item() == pytest.approx(steps[1]["hidden_norm"], rel=1e-4)


@pytest.mark.parametrize("kind, make", [("rnn", RNN), ("lstm", LSTM)])
def test_the_norms_are_those_of_autograd(kind, make):
    cell, x = make(5, 6).double(), torch.randn(3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(1)
        norms = norms_backwards(kind, cell, x)
    torch.manual_seed(1)
    torch.randn(3, 6, 3, 3, dtype=x.dtype)  # drawn for the attention
    dh, h, c = torch.randn(3, 6, dtype=x.dtype), x.new_zeros(3, 6), x.new_zeros(3, 6)
    states = []
    for t in range(4):
        h, *rest = [cell.step_forward(x[:, t], h)] if kind == "rnn" else cell.step_forward(x[:, t], h, c)
        h, c = 1 * h, 1 * (rest[0] if rest else c)  # what goes on to the next step, apart from how it was made
        states.append((h, c))
    for back, (h_t, c_t) in enumerate(reversed(states)):
        found = torch.autograd.grad(
            h, [h_t, c_t] if kind == "lstm" else [h_t], dh, retain_graph=True, allow_unused=True
        )
        total = torch.cat([torch.zeros(3, 6) if g is None else g for g in found], dim=1).norm(dim=1).mean().item()
        assert norms[back] == pytest.approx(total, rel=1e-6)


def test_gradients_of_all_cells(trained_cells, tmp_path, capsys):
    checkpoints = [str(trained_cells / f"{cell}_best.pt") for cell in ("rnn", "lstm", "attn")]
    main(["--gradients", "--steps", "12", "--out", str(tmp_path), "--checkpoint", *checkpoints, checkpoints[0]])
    curves = json.loads((tmp_path / "gradients.json").read_text())
    assert len(curves) == 8 and all(len(norms) == 12 for norms in curves.values())
    assert curves["rnn, new"][11] < curves["rnn, new"][0]
    assert "of the gradient is left" in capsys.readouterr().out


def test_wrong_arguments_are_said(trained_cells):
    checkpoint = str(trained_cells / "rnn_best.pt")
    for arguments, message in (
        ([], "either --image PATH or --gradients"),
        (["--gradients", "--image", "x"], "either --image PATH or --gradients"),
        (["--image", "none.jpg"], "none.jpg: "),
    ):
        with pytest.raises(InputError, match=message):
            main(["--checkpoint", checkpoint, *arguments])
