"""The parts of the training loop."""

from dataclasses import replace

import pytest
import torch
from helpers import random_captions, tiny_captioner
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data.caption_file import check_captions
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.model.captioner import ModelSettings, build_captioner
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.features import FeaturePass, prepare_training
from rnn_lstm_captioning.training.settings import DataSettings, TrainingSettings
from rnn_lstm_captioning.training.trainer import Trainer, learning_rate_factor, selection_score


def make_trainer(captioner, **changed):
    settings = TrainingSettings(weight_decay=0.5, learning_rate=0.1, batch_size=4, epochs=2, quiet=True)
    pairs = Pairs(random_captions(8, 6, 12), torch.arange(8), features=torch.randn(8, 6, 2, 2))
    return Trainer(captioner, pairs, pairs, replace(settings, **changed))


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
def test_the_learning_rate_rises_to_its_full_value_and_falls_to_zero(total, data):
    step = data.draw(st.integers(0, total - 1))
    cosine, constant = (
        learning_rate_factor(TrainingSettings(schedule=schedule), step, total) for schedule in ("cosine", "constant")
    )
    assert 0 < constant <= 1 and 0 <= cosine <= constant + 1e-12
    if step >= total // 20:
        assert constant == 1
        assert step + 1 == total or learning_rate_factor(TrainingSettings(), step + 1, total) <= cosine
    assert total == 1 or learning_rate_factor(TrainingSettings(), total, total) < 1e-9


def test_the_best_epoch_has_the_highest_cider_or_else_the_lowest_loss():
    assert selection_score({"val_loss_per_word": 2.0}) > selection_score({"val_loss_per_word": 2.1})
    assert selection_score({"val_loss_per_word": 2.1, "val_cider": 40.0}) > selection_score(
        {"val_loss_per_word": 2.0, "val_cider": 39.0}
    )


def test_the_best_epoch_has_the_lowest_loss_if_that_is_wanted():
    worse, better = {"val_loss_per_word": 2.1, "val_cider": 40.0}, {"val_loss_per_word": 2.0, "val_cider": 39.0}
    assert selection_score(better, "loss") > selection_score(worse, "loss")
    with pytest.raises(InputError, match="best_by is 'bleu', wanted one of cider, loss"):
        TrainingSettings(best_by="bleu")


def test_every_epoch_has_the_same_number_of_steps():
    dry = make_trainer(tiny_captioner("rnn"), batching="length", batch_size=1, dry_run=True)
    assert dry.steps_per_epoch == len(dry.batches_of_epoch(3)) == 4
    trainer = make_trainer(tiny_captioner("rnn"), batching="length", batch_size=3)
    for seed in range(5):
        batches = trainer.train.row_batches(3, "length", torch.Generator().manual_seed(seed))
        assert len(batches) == trainer.steps_per_epoch


def test_the_warm_up_can_be_turned_off_or_made_longer():
    without = TrainingSettings(schedule="constant", warmup=0)
    assert all(learning_rate_factor(without, step, 100) == 1 for step in range(100))
    rising = [learning_rate_factor(TrainingSettings(schedule="constant", warmup=0.2), step, 100) for step in range(21)]
    assert rising == pytest.approx([(step + 1) / 20 for step in range(20)] + [1.0])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epochs": 0}, "epochs is 0, wanted an int of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, wanted a number of at least 0"),
        ({"batching": "any"}, "batching is 'any', wanted one of padded, length"),
        ({"warmup": 1.0}, r"warmup is 1.0, wanted in \[0, 1\)"),
        ({"encoder_learning_rate": 0.0}, "encoder_learning_rate is 0, wanted above 0"),
        ({"self_critical": True, "batching": "length"}, "it can't be used with --batching length"),
    ],
)
def test_unusable_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**values)


def test_a_trainer_works_without_files():
    torch.manual_seed(1)
    captioner, epochs = tiny_captioner("gru").float(), []
    captioner.image_encoder.requires_grad_(False)
    trainer = make_trainer(captioner, epochs=4, weight_decay=0.0, learning_rate=0.02)
    trainer.on_epoch = lambda trainer: epochs.append(trainer.history[-1]["val_loss"])
    assert trainer.run() and len(epochs) == 4 and epochs[-1] < epochs[0]


def test_crops_need_an_image_size():
    data = check_captions(make_scenes(num_train=2, num_val=1), "scenes")
    settings = ModelSettings(encoder="squeezenet1_1", hidden_dim=4, wordvec_dim=4)
    captioner = build_captioner(settings, data.word_to_idx)
    with pytest.raises(ValueError, match="augment crops images to the image_size of the encoder, which is None"):
        prepare_training(captioner, data, DataSettings(augment=True), FeaturePass(progress=False))


def test_the_cnn_has_its_own_learning_rate():
    captioner = tiny_captioner("lstm").float()
    before = {name: parameter.clone() for name, parameter in captioner.named_parameters()}
    trainer = make_trainer(captioner, learning_rate=1e-2, encoder_learning_rate=1e-4, warmup=0.0, weight_decay=0.0)
    trainer.objective = lambda captioner, batch: sum(p.sum() for p in captioner.parameters())
    trainer.train_one_batch(torch.arange(4))
    for name, parameter in captioner.named_parameters():  # Adam's first step is as long as the learning rate
        step = 1e-4 if name.startswith("image_encoder.") else 1e-2
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, step), rtol=1e-2, atol=1e-6)


def test_training_losses_are_measured_on_whole_images_if_each_has_to_be_encoded():
    pairs = Pairs(random_captions(20, 6, 12), torch.arange(20) // 5, together=True)
    some = pairs.subset(10)
    assert len(some) == 10 and some.image_index.unique(return_counts=True)[1].tolist() == [5, 5]
    assert len(pairs.subset(100)) == 20 and len(pairs.subset(1)) == 5
