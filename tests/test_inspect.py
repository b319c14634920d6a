"""`inspect` writes what the model really computes."""

import json

import pytest
import torch
from helpers import CELLS, CELLS_BY_NAME
from PIL import Image

from rnn_lstm_captioning import InputError, cells, load_captioner
from rnn_lstm_captioning.classroom.looking_inside import norms_back_in_time
from rnn_lstm_captioning.commands.inspecting import main


@pytest.mark.parametrize("cell", CELLS)
def test_inspect_writes_every_step_of_a_caption(cell, trained_cells, tmp_path):
    checkpoint, image = str(trained_cells / f"{cell}_best.pt"), str(trained_cells / "photo.png")
    main(["--checkpoint", checkpoint, "--image", image, "--out", str(tmp_path), "--top", "3"])
    found = json.loads((tmp_path / "photo_inside.json").read_text())
    caption = load_captioner(checkpoint, "cpu").caption(image, beam=1, no_repeats=False, no_bad_endings=False)
    assert found["caption"] == caption.text and found["cell"] == cell
    assert sum(step["log_prob"] for step in found["steps"]) == pytest.approx(caption.log_prob, abs=1e-4)
    for step in found["steps"]:
        probs = [p for _, p in step["top"]]
        assert len(probs) == 3 and probs == sorted(probs, reverse=True) and step["top"][0][0] == step["word"]
        assert (step["gates"] == {}) == (cell == "rnn")
        for name, values in step["gates"].items():
            assert len(values) == 16 and ("gate" not in name or 0 <= min(values) <= max(values) <= 1), name
        if cell == "attn":
            assert torch.tensor(step["attention"]).sum().item() == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "photo_inside.png").size[0] > 600


def test_the_gates_and_the_cell_state_explain_the_hidden_state(trained_cells, tmp_path):
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
    o, c = (torch.tensor(values) for values in (steps[1]["gates"][name] for name in ("output gate o", "cell state c")))
    assert (o * torch.tanh(c)).norm().item() == pytest.approx(steps[1]["hidden_norm"], rel=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_the_norms_are_those_of_the_hand_written_backward_passes(cell):
    module, x = CELLS_BY_NAME[cell](5, 6).double(), torch.randn(3, 4, 5, dtype=torch.float64)
    torch.manual_seed(1)
    norms = norms_back_in_time(module, x, 6)
    torch.manual_seed(1)
    image = torch.randn(3, 6, 3, 3, dtype=x.dtype) if module.uses_grid else torch.zeros(3, 6, dtype=x.dtype)
    state, caches = tuple(torch.zeros_like(part) for part in module.start(image)), []
    step_forward, step_backward = (getattr(cells, f"{module.prefix}_step_{way}") for way in ("forward", "backward"))
    for t in range(4):
        inputs, query = (), state[0]
        if module.uses_grid:
            attn, attn_weights = cells.dot_product_attention(query, image)
            inputs = (attn,)
        *state, cache = step_forward(x[:, t], *state, *inputs, *module.parameters())
        caches.append((cache, query, attn_weights if module.uses_grid else None))
    gradients = [torch.randn(3, 6, dtype=x.dtype), *[torch.zeros(3, 6, dtype=x.dtype)] * (len(state) - 1)]
    for norm, (cache, query, attn_weights) in zip(norms, reversed(caches)):
        assert norm == pytest.approx(torch.cat(gradients, dim=1).norm(dim=1).mean().item(), rel=1e-9)
        _, *gradients = step_backward(*gradients, cache)[: 2 + len(state)]
        if module.uses_grid:
            dh, dc, dattn = gradients
            gradients = [dh + cells.dot_product_attention_backward(dattn, query, image, attn_weights)[0], dc]
        gradients = gradients[: len(state)]


def test_gradient_curves_of_all_cells_are_written(trained_cells, tmp_path, capsys):
    checkpoints = [str(trained_cells / f"{cell}_best.pt") for cell in CELLS]
    main(["--gradients", "--steps", "12", "--out", str(tmp_path), "--checkpoint", *checkpoints, checkpoints[0]])
    curves = json.loads((tmp_path / "gradients.json").read_text())
    assert len(curves) == 2 * len(CELLS) + 2 and all(len(norms) == 12 for norms in curves.values())
    assert curves["rnn, new"][11] < curves["rnn, new"][0]
    assert "of the gradient is left" in capsys.readouterr().out


def test_wrong_arguments_are_refused(trained_cells):
    checkpoint = str(trained_cells / "rnn_best.pt")
    for arguments, message in (
        ([], "either --image PATH or --gradients"),
        (["--gradients", "--image", "x"], "either --image PATH or --gradients"),
        (["--image", "none.jpg"], "none.jpg: "),
    ):
        with pytest.raises(InputError, match=message):
            main(["--checkpoint", checkpoint, *arguments])
