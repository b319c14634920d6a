"""For the benchmarks that train: a captioner and its training data, from the flags of train_*.py."""

from argparse import Namespace

import torch

from rnn_lstm_captioning.commands.train import make_captioner
from rnn_lstm_captioning.commands.train_settings import model_settings_from, settings_from
from rnn_lstm_captioning.data.caption_file import CaptionData
from rnn_lstm_captioning.model.captioner import CaptioningRNN
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.features import FeaturePass, prepare_training
from rnn_lstm_captioning.training.settings import TrainingSettings


def prepare(
    args: Namespace, cell: str, data: CaptionData, precision: str | None = None
) -> tuple[CaptioningRNN, Pairs, Pairs, TrainingSettings]:
    """A new captioner with this cell, its pairs, and the settings. Args: precision, to replace that of the flags."""
    args.precision = precision or args.precision
    torch.manual_seed(args.seed)
    settings = settings_from(args, data.source)
    model_settings = model_settings_from(args, cell, data.splits["train"].images.shape[-1])
    captioner = make_captioner(model_settings, settings.data, data, None, args.device or "cpu", not args.quiet)
    feature_pass = FeaturePass(precision=settings.training.precision, progress=not args.quiet)
    return captioner, *prepare_training(captioner, data, settings.data, feature_pass), settings.training
