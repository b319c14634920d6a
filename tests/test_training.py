"""The training loop's parts."""

from types import SimpleNamespace

import torch
from helpers import random_captions, tiny_captioner
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning.pairs import Pairs
from rnn_lstm_captioning.training import Trainer, learning_rate_factor, merit


def make_trainer(captioner, **changed):
    settings = dict(optimizer="adamw", weight_decay=0.5, learning_rate=0.1, batch_size=4, batching="padded", epochs=2)
    settings |= dict(seed=0, dry_run=False, device="cpu")
    pairs = Pairs(random_captions(8, 6, 12), torch.arange(8), features=torch.randn(8, 6, 2, 2))
    return Trainer(captioner, pairs, pairs, SimpleNamespace(**settings | changed), None, None)


def test_weight_decay_shrinks_matrices_only():
    captioner = tiny_captioner("lstm", image_norm="batchnorm")
    before = {name: p.detach().clone() for name, p in captioner.named_parameters()}
    trainer = make_trainer(captioner)
    for parameter in captioner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    for name, parameter in captioner.named_parameters():
        if not name.startswith("image_encoder"):
            shrunk = 1 - 0.1 * 0.5 if parameter.dim() > 1 else 1.0
            torch.testing.assert_close(parameter.detach(), shrunk * before[name], msg=name)


@given(st.integers(1, 3000), st.data())
def test_the_learning_rate_rises_to_its_value_and_falls_to_nothing(total, data):
    step = data.draw(st.integers(0, total - 1))
    cosine, constant = (learning_rate_factor(schedule, step, total) for schedule in ("cosine", "constant"))
    assert 0 < constant <= 1 and 0 <= cosine <= constant + 1e-12
    if step >= total // 20:
        assert constant == 1
        assert step + 1 == total or learning_rate_factor("cosine", step + 1, total) <= cosine
    assert total == 1 or learning_rate_factor("cosine", total, total) < 1e-9


def test_the_best_epoch_has_most_cider_or_else_the_lowest_loss():
    assert merit({"val_loss_per_word": 2.0}) > merit({"val_loss_per_word": 2.1})
    assert merit({"val_loss_per_word": 2.1, "val_cider": 40.0}) > merit({"val_loss_per_word": 2.0, "val_cider": 39.0})


def test_one_number_of_steps_per_epoch_for_every_order():
    dry = make_trainer(tiny_captioner("rnn"), batching="length", batch_size=1, dry_run=True)
    assert dry.steps_per_epoch == len(dry.batches_of_epoch(3)) == 4
    trainer = make_trainer(tiny_captioner("rnn"), batching="length", batch_size=3)
    for seed in range(5):
        batches = trainer.train.batches(3, "length", torch.Generator().manual_seed(seed))
        assert len(batches) == trainer.steps_per_epoch
