"""How sure a captioner is, and whether it knows such images."""

import json
import math

import pytest
import torch
from helpers import run_test
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.evaluation.captions import ImageCaptioner
from rnn_lstm_captioning.evaluation.confidence import (
    Confidence,
    agreement,
    directions,
    fit_calibration,
    measure_confidence,
    restore_confidence,
)
from rnn_lstm_captioning.model.checkpoint import export_safetensors, load_checkpoint


def test_rare_words_weigh_more_in_the_agreement_with_people():
    references = [["a dog runs", "a puppy"], ["a cat sits"], ["a dog"], ["a man"]]
    found = agreement([["a", "dog"], ["a", "dog"], ["a", "dog", "sits"], ["a"]], references)
    dog, sits = math.log(4 / 2), math.log(4 / 1)
    assert found == pytest.approx([1.0, 0.0, dog / (dog + sits), 0.0])


@given(st.floats(-4, 4), st.floats(-2, 2), st.integers(0, 2**31))
def test_the_calibration_finds_the_curve_behind_the_data(slope, offset, seed):
    scores = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    found = fit_calibration(scores, torch.sigmoid(slope * scores.double() + offset))
    torch.testing.assert_close(torch.stack(found), torch.tensor([slope, offset]), atol=1e-3, rtol=1e-3)


def test_it_is_calibrated_on_captions_that_it_has_not_seen():
    torch.manual_seed(0)
    log_probs = -6 * torch.rand(4000)
    words, references = [["x"]] * 4000, []
    for log_prob in log_probs.tolist():  # p(right) = sigmoid(log_prob / 2 + 1)
        references.append([["x"], ["y"]][int(torch.rand(()) > torch.sigmoid(torch.tensor(log_prob / 2 + 1)))])
    features = torch.randn(4000, 8, 2, 2)
    half = slice(0, 4000, 2), slice(1, 4000, 2)
    found = measure_confidence(features, features, words[half[0]], log_probs[half[0]].tolist(), references[half[0]])
    said = torch.tensor(agreement(words[half[1]], references[half[1]]))
    sure = torch.tensor([found.share(log_prob, 1) for log_prob in log_probs[half[1]].tolist()])
    for part in sure.argsort().split(500):
        assert sure[part].mean().item() == pytest.approx(said[part].mean().item(), abs=0.06)


def gaussian(N, C, spread, shift):
    return (spread * torch.randn(N, C) + shift)[:, :, None, None]


@pytest.mark.parametrize("N", [30, 400])
def test_images_of_another_kind_are_far_away(N):
    C, torch_seed = 40, torch.manual_seed(1)
    spread, shift = torch.linspace(0.05, 1, C), torch.randn(C, generator=torch_seed)
    train, val, other = (gaussian(N, C, spread, shift + far) for far in (0, 0, 3 * torch.randn(C)))
    captions = [["w"]] * N, [-1.0] * N, [["w", "v"]] * N
    found = measure_confidence(train, val, *captions)
    assert found.familiar(val).float().mean() >= 0.96 and not found.familiar(other).any()
    # the covariance of the model is that of the data along the axes
    along = (directions(train) - found.mean) @ found.axes.T
    torch.testing.assert_close(along.square().mean(0), found.variances, rtol=1e-3, atol=1e-6)
    assert found.distance(train).square().mean().item() == pytest.approx(1, rel=0.05)


def test_an_exported_model_says_how_sure_it_is(trained_cells, tmp_path, capsys):
    checkpoint, photo = str(trained_cells / "attn_best.pt"), str(trained_cells / "photo.png")
    path = tmp_path / "model.safetensors"
    run_test("attn", ["--checkpoint", checkpoint, "--export", str(path), "--calibrate", "--export-bits", "8"])
    capsys.readouterr()
    run_test("attn", ["--checkpoint", str(path), "--image", photo])
    line = capsys.readouterr().out
    assert "% sure" in line and line.startswith(f"{photo}: ")
    run_test("attn", ["--checkpoint", str(path), "--image", photo, "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    assert 0 <= result["sure"] <= 1 and isinstance(result["familiar"], bool)
    caption = load_captioner(path, "cpu").caption(photo)
    assert caption.text == result["caption"] and caption.sure == pytest.approx(result["sure"], abs=0.006)
    run_test("attn", ["--checkpoint", checkpoint, "--image", photo])
    assert "sure" not in capsys.readouterr().out  # it was not measured
    assert load_captioner(checkpoint, "cpu").caption(photo).sure is None


@pytest.mark.parametrize("flags", [["--calibrate"], ["--export-bits", "8"]])
def test_flags_of_an_export_are_refused_without_one(trained_cells, flags):
    with pytest.raises(InputError, match="belong to --export FILE"):
        run_test("attn", ["--checkpoint", str(trained_cells / "attn_best.pt"), *flags])


def test_a_confidence_that_does_not_fit_is_refused(trained_cells, tmp_path):
    found, path = load_checkpoint(trained_cells / "lstm_best.pt"), tmp_path / "x.safetensors"
    C = len(found.weights["feature_mean"])
    whole = {name: torch.ones(()) for name in ("slope", "offset", "noise", "limit")}
    whole |= {"mean": torch.ones(C), "axes": torch.ones(2, C), "variances": torch.ones(2)}
    found.confidence = whole
    export_safetensors(found, path)
    again = load_checkpoint(path)
    assert isinstance(restore_confidence(again, path), Confidence) and again.weights.keys() == found.weights.keys()
    for change in (
        {"mean": torch.ones(C + 1)},
        {"axes": torch.ones(3, C)},
        {"limit": torch.ones(1)},
        {"x": torch.ones(1)},
    ):
        found.confidence = whole | change
        export_safetensors(found, path)
        with pytest.raises(InputError, match="its confidence does not fit its weights"):
            load_captioner(path)
    for value in (torch.tensor(math.nan), torch.ones((), dtype=torch.int64)):
        found.confidence = whole | {"limit": value}
        export_safetensors(found, path)
        with pytest.raises(InputError, match=r"x\.safetensors (is damaged|holds weights that are infinite)"):
            load_captioner(path)


def test_a_captioner_without_a_confidence_says_nothing(trained_cells):
    captioner = load_captioner(trained_cells / "gru_best.pt", "cpu")
    assert isinstance(captioner, ImageCaptioner) and captioner.confidence is None
