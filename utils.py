"""For a learner's notebook: helpers under the names that the courses use. Everything here stands in the package."""

import random

import numpy
import torch

from rnn_lstm_captioning.gradients import compute_numeric_gradient, rel_error
from rnn_lstm_captioning.visualize import attention_visualizer
from rnn_lstm_captioning.vocabulary import decode_captions

__all__ = ["attention_visualizer", "compute_numeric_gradient", "decode_captions", "rel_error", "reset_seed"]


def reset_seed(number):
    """Seed Python's, NumPy's and PyTorch's random numbers."""
    random.seed(number), numpy.random.seed(number), torch.manual_seed(number)
