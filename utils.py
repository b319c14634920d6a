"""Helpers for a learner's notebook, with the names that the courses use. All except reset_seed are in the package."""

import random

import numpy
import torch

from rnn_lstm_captioning.classroom.gradients import compute_numeric_gradient, rel_error
from rnn_lstm_captioning.data.vocabulary import decode_captions
from rnn_lstm_captioning.evaluation.figures import attention_visualizer

__all__ = ["attention_visualizer", "compute_numeric_gradient", "decode_captions", "rel_error", "reset_seed"]


def reset_seed(number: int) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch."""
    random.seed(number), numpy.random.seed(number), torch.manual_seed(number)
