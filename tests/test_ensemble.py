"""Several captioners write a caption together: the mean of their probabilities, in every search."""

import pytest
import torch
from helpers import CELLS, TinyEncoder, random_captions, run_test, tiny_captioner
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import Decoding, InputError
from rnn_lstm_captioning.evaluation.captions import ImageCaptioner
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.decoding import decode
from rnn_lstm_captioning.model.ensemble import Ensemble

SEARCHES = [Decoding(max_length=6), Decoding(max_length=6, beam=3), Decoding(max_length=6, temperature=1.0)]


def captioners(cells):
    found = []
    for seed, cell in enumerate(cells):
        torch.manual_seed(seed)
        found.append(tiny_captioner(cell, H=5 + seed))
    return found


def images(N=4):
    return torch.rand(N, 3, 64, 96, dtype=torch.float64)


@pytest.mark.parametrize("decoding", SEARCHES, ids=["greedy", "beam", "sampling"])
@pytest.mark.parametrize("cell", CELLS)
def test_an_ensemble_of_one_is_that_captioner(cell, decoding):
    (model,), pictures = captioners([cell]), images()
    ensemble = Ensemble([model])
    with evaluating(ensemble):
        alone = decode(model, model.encode(pictures), decoding, generator=torch.Generator().manual_seed(0))
        found = decode(ensemble, ensemble.encode(pictures), decoding, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone.captions, found.captions)
    torch.testing.assert_close(alone.log_probs, found.log_probs.to(alone.log_probs.dtype), atol=1e-5, rtol=0)


@given(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3), st.integers(1, 3), st.integers(2, 6))
def test_the_probabilities_are_the_mean_of_the_captioners_and_sum_to_one(cells, N, L):
    models, pictures, captions = captioners(cells), images(N), random_captions(N, L + 1, 12)
    ensemble = Ensemble(models)
    with evaluating(ensemble):
        features = ensemble.encode(pictures)
        found = ensemble.scores(features, captions[:, :-1]).exp()
        each = [model.scores(model.encode(pictures), captions[:, :-1]).softmax(2) for model in models]
        torch.testing.assert_close(found.double(), torch.stack(each).mean(0), atol=1e-6, rtol=0)
        state, image = ensemble.start(features)
        for t in range(L):  # one step at a time gives the same
            scores, state, _ = ensemble.step(captions[:, t], state, image)
            torch.testing.assert_close(scores.exp(), found[:, t], atol=1e-6, rtol=0)
        words = captions[:, 1:]
        wanted = -found.log().gather(2, words.unsqueeze(2)).squeeze(2).where(words != 0, 0).sum() / N
        torch.testing.assert_close(ensemble.loss(features, captions), wanted)
        twice, which = torch.cat([captions, captions]), torch.arange(N).repeat(2)
        torch.testing.assert_close(ensemble.loss(features, twice, which), wanted)
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[..., 0]))


def test_beam_search_of_an_ensemble_is_never_less_probable_than_greedy():
    ensemble = Ensemble(captioners(["lstm", "attn", "gru"]))
    with evaluating(ensemble):
        features = ensemble.encode(images(8))
        greedy, beam = (decode(ensemble, features, decoding) for decoding in SEARCHES[:2])
    assert (beam.log_probs >= greedy.log_probs - 1e-6).all()


def test_the_attention_is_the_mean_of_those_that_look():
    models = captioners(["attn", "lstm", "attn"])
    ensemble, pictures = Ensemble(models), images(2)
    with evaluating(ensemble):
        state, image = ensemble.start(ensemble.encode(pictures))
        _, _, weights = ensemble.step(torch.tensor([1, 1]), state, image)
        each = [m.step(torch.tensor([1, 1]), *m.start(m.encode(pictures)))[2] for m in (models[0], models[2])]
    torch.testing.assert_close(weights, torch.stack(each).mean(0))
    captions = ImageCaptioner(ensemble, 64).caption_images(pictures)
    assert all(caption.attention is None or caption.attention.shape[1:] == (2, 3) for caption in captions)


def test_other_vocabularies_and_other_features_are_refused():
    with pytest.raises(InputError, match="must have the same vocabulary"):
        Ensemble([tiny_captioner("lstm"), tiny_captioner("lstm", V=13)])
    with pytest.raises(InputError, match="at least one captioner"):
        Ensemble([])
    ensemble = Ensemble(captioners(["lstm", "gru"]))
    with pytest.raises(ValueError, match="not features of this ensemble"):
        ensemble.start(torch.zeros(2, 7))
    assert TinyEncoder.out_channels == 6


def test_the_command_scores_an_ensemble_of_two_cells(trained_cells, scenes_file, tmp_path, capsys):
    paths = [str(trained_cells / f"{cell}_best.pt") for cell in ("attn", "gru")]
    from rnn_lstm_captioning.commands import test

    test.main(
        [
            "--checkpoint",
            *paths,
            "--metrics",
            "--baselines",
            "--beam",
            "2",
            "--out",
            str(tmp_path),
            "--num-samples",
            "1",
        ]
    )
    out = capsys.readouterr().out
    assert "the model" in out and (tmp_path / "metrics.json").exists()
    run_test("attn", ["--checkpoint", paths[0], paths[0], "--image", str(trained_cells / "photo.png")])
    twice = capsys.readouterr().out
    run_test("attn", ["--checkpoint", paths[0], "--image", str(trained_cells / "photo.png")])
    assert capsys.readouterr().out == twice
    with pytest.raises(InputError, match="holds the gru captioner"):
        run_test("attn", ["--checkpoint", *paths])
    with pytest.raises(InputError, match="--export takes one checkpoint"):
        test.main(["--checkpoint", *paths, "--export", str(tmp_path / "x.safetensors")])
