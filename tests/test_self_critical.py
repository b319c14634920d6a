"""Self-critical training: its baseline, its gradient, and the command line."""

import itertools

import pytest
import torch
from helpers import CELLS, random_captions, run_train, tiny_captioner

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data.vocabulary import END, NULL, START
from rnn_lstm_captioning.model.checkpoint import load_checkpoint
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.self_critical import SelfCritical, mean_of_others


def test_the_baseline_is_the_mean_of_the_others():
    rewards, images = torch.tensor([1.0, 5.0, 3.0, 7.0, 2.0]), torch.tensor([4, 9, 4, 4, 9])
    assert mean_of_others(rewards, images).tolist() == [5.0, 2.0, 4.0, 2.0, 5.0]
    # without another caption, the advantage is zero
    assert mean_of_others(torch.tensor([3.0]), torch.tensor([0])).tolist() == [3.0]


@pytest.mark.parametrize("cell", CELLS)
def test_the_mean_log_prob_is_minus_the_loss(cell):
    captioner, captions = tiny_captioner(cell), random_captions(5, 8, 12)
    features = torch.randn(5, 6, 2, 2, dtype=torch.float64)
    log_probs = captioner.log_probs(features, captions)
    torch.testing.assert_close(-log_probs.mean(), captioner.loss(features, captions), rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_the_expected_reward():
    captioner = tiny_captioner("lstm", V=6, D=3, H=4)
    with torch.no_grad():  # only captions of one or two words, without <NULL> and <START>
        captioner.vocabulary_projection.b[[NULL, START]] = -50
    copies, features = 20_000, torch.randn(1, 6, 2, 2, dtype=torch.float64)
    pairs = Pairs(
        torch.full((copies, 3), END), torch.zeros(copies).long(), features=features.expand(copies, -1, -1, -1)
    )

    def reward(words):
        return (len(words) + 2.0 * ("w0" in words) - 3.0 * ("w1" in words)) ** 2 / 9

    objective = SelfCritical([["w0 w1"]], max_length=2)
    objective.reward = lambda captions, _: [reward(words) for words in captions]
    names = captioner.idx_to_word
    choices = [(END,), *((first, second) for first, second in itertools.product(range(2, 6), repeat=2) if first != END)]
    captions = torch.tensor([[START, *words, *[NULL] * (2 - len(words))] for words in choices])
    rewards = torch.tensor([reward([names[word] for word in words]) for words in choices])
    parameters = [captioner.vocabulary_projection.weight, captioner.cell.Wh, captioner.feature_projection.weight]
    probs = captioner.log_probs(features.expand(len(captions), -1, -1, -1), captions).exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-9)
    expected = torch.autograd.grad(-(probs * rewards).sum(), parameters)
    loss = objective(captioner, pairs.batch(torch.arange(copies), "cpu"))
    assert loss.item() == pytest.approx(-(probs * rewards).sum().item(), abs=0.02)
    for found, exact in zip(torch.autograd.grad(loss, parameters), expected):
        assert (found - exact).norm() < 0.05 * exact.norm()


SMALL = "--hidden-dim 16 --wordvec-dim 8 --encoder-weights none --batch-size 20 --quiet --device cpu".split()


@pytest.fixture(scope="module")
def trained(scenes_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run_train("attn", ["--data", str(scenes_file), "--out", str(folder), *SMALL, "--epochs", "3"])
    return folder


def train_on(scenes_file, folder, out, *extra):
    common = ["--data", str(scenes_file), "--out", str(out), *SMALL, "--self-critical"]
    run_train("attn", [*common, "--init", str(folder / "attn_best.pt"), *extra])
    return load_checkpoint(out / "attn_last.pt")


def test_self_critical_training_starts_from_a_checkpoint_and_resumes_exactly(scenes_file, trained, tmp_path):
    whole = train_on(scenes_file, trained, tmp_path / "whole", "--epochs", "2", "--schedule", "constant")
    train_on(scenes_file, trained, tmp_path / "parts", "--epochs", "1", "--schedule", "constant")
    parts = train_on(scenes_file, trained, tmp_path / "parts", "--epochs", "2", "--schedule", "constant", "--resume")
    before = load_checkpoint(trained / "attn_best.pt").weights
    assert not torch.equal(whole.weights["cell.Wx"], before["cell.Wx"])
    assert torch.equal(whole.weights["feature_mean"], before["feature_mean"])
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in before)


def test_a_missing_or_unsuitable_init_is_refused(scenes_file, trained, tmp_path):
    data = ["--data", str(scenes_file), "--out", str(tmp_path), *SMALL]
    with pytest.raises(InputError, match="name its checkpoint with --init"):
        run_train("attn", [*data, "--self-critical"])
    with pytest.raises(InputError, match="another cell or vocabulary"):
        run_train("lstm", [*data, "--init", str(trained / "attn_best.pt")])
    with pytest.raises(InputError, match="was trained with --encoder regnet_x_400mf, not mobilenet_v2"):
        run_train("attn", [*data, "--encoder", "mobilenet_v2", "--init", str(trained / "attn_best.pt")])
    with pytest.raises(InputError, match="does not fit these settings .*size mismatch"):
        run_train("attn", [*data, "--hidden-dim", "8", "--init", str(trained / "attn_best.pt")])
