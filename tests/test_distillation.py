"""Distillation: a captioner learns from the averaged probabilities of others."""

import pytest
import torch
from helpers import CELLS, random_captions, run_train, tiny_captioner
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data.vocabulary import NULL
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.checkpoint import load_checkpoint
from rnn_lstm_captioning.training import distillation as module
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.distillation import Distillation
from rnn_lstm_captioning.training.trainer import caption_loss


def pairs_of(R, L, V=12):
    features = torch.randn(R, 6, 2, 2, dtype=torch.float64)
    return Pairs(random_captions(R, L, V), torch.arange(R), features=features)


@given(st.sampled_from(CELLS), st.integers(1, 5), st.integers(3, 7))
def test_with_certain_teachers_it_is_the_loss_of_the_captions(cell, R, L):
    captioner, pairs = tiny_captioner(cell), pairs_of(R, L)
    certain = Distillation(pairs.captions[:, 1:, None].int(), torch.ones(R, L - 1, 1).half())
    batch = pairs.batch(torch.randperm(R), "cpu")
    torch.testing.assert_close(
        certain(captioner, batch).double(), caption_loss(captioner, batch).double(), rtol=1e-5, atol=1e-5
    )


def test_the_teachers_are_read_at_every_position_with_both_images(monkeypatch):
    teachers, train = [tiny_captioner("attn"), tiny_captioner("lstm")], pairs_of(7, 6)
    mirrored = torch.randn(7, 6, 2, 2, dtype=torch.float64)
    monkeypatch.setattr(module, "CAPTIONS", 3)  # several parts

    def prepare(teacher, data, name, feature_pass, cached):
        assert cached and name == "train"
        return Pairs(train.captions, train.image_index, features=mirrored if feature_pass.mirrored else train.features)

    monkeypatch.setattr(module, "prepare_pairs", prepare)
    found = module.distillation(teachers, None, train)
    words = train.captions[:, :-1]
    with evaluating(teachers[0]), evaluating(teachers[1]):
        each = [t.scores(f, words).softmax(2) for t in teachers for f in (train.features, mirrored)]
    mean = torch.stack(each).mean(0)
    whole = torch.zeros_like(mean).scatter(2, found.words.long(), found.probs.double())
    scored = train.captions[:, 1:] != NULL
    torch.testing.assert_close(whole[scored], mean[scored], atol=1e-3, rtol=0)


def test_its_gradient_is_zero_where_the_captioner_agrees_with_its_teacher():
    captioner, train = tiny_captioner("gru"), pairs_of(4, 6)
    with evaluating(captioner):
        probs, words = captioner.scores(train.features, train.captions[:, :-1]).softmax(2).topk(12, dim=2)
    exact = Distillation(words.int(), probs)  # not rounded to 16 bits
    exact(captioner, train.batch(torch.arange(4), "cpu")).backward()
    assert captioner.vocabulary_projection.b.grad.abs().max() < 1e-6
    other = Distillation(words.roll(1, dims=0).int(), probs)
    other(captioner, train.batch(torch.arange(4), "cpu")).backward()
    assert captioner.vocabulary_projection.b.grad.abs().max() > 1e-3


SMALL = "--hidden-dim 12 --wordvec-dim 8 --encoder-weights none --batch-size 20 --quiet --device cpu".split()


def test_a_run_with_teachers_resumes_exactly_and_only_with_the_same_ones(scenes_file, trained_cells, tmp_path):
    def run(out, *extra, teachers=("attn", "gru")):
        files = [str(trained_cells / f"{cell}_best.pt") for cell in teachers]
        common = ["--data", str(scenes_file), "--out", str(tmp_path / out), *SMALL, "--schedule", "constant"]
        run_train("lstm", [*common, *(["--distill", *files] if files else []), *extra])
        return load_checkpoint(tmp_path / out / "lstm_last.pt").weights

    whole = run("whole", "--epochs", "2")
    run("parts", "--epochs", "1")
    parts = run("parts", "--epochs", "2", "--resume")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    alone = run("alone", "--epochs", "2", teachers=())
    assert not torch.equal(whole["cell.Wx"], alone["cell.Wx"])
    for teachers in (("attn",), ()):
        with pytest.raises(InputError, match="was trained with other teachers: to resume, use the same --distill"):
            run("parts", "--epochs", "3", "--resume", teachers=teachers)
    with pytest.raises(InputError, match="two objectives"):
        run("both", "--self-critical", "--init", str(trained_cells / "lstm_best.pt"))
    with pytest.raises(InputError, match=r"--distill .*attn_best\.pt has another vocabulary than scenes"):
        run_train("lstm", ["--data", "scenes", "--distill", str(trained_cells / "attn_best.pt"), *SMALL])
