"""The three recurrent cells, each in a file that can be read alone, top to bottom."""

from .attention import (
    AttentionLSTM,
    attention_backward,
    attention_forward,
    attention_step_backward,
    attention_step_forward,
    dot_product_attention,
    dot_product_attention_backward,
)
from .lstm import LSTM, lstm_backward, lstm_forward, lstm_step_backward, lstm_step_forward
from .rnn import RNN, rnn_backward, rnn_forward, rnn_step_backward, rnn_step_forward

__all__ = [
    "LSTM",
    "RNN",
    "AttentionLSTM",
    "attention_backward",
    "attention_forward",
    "attention_step_backward",
    "attention_step_forward",
    "dot_product_attention",
    "dot_product_attention_backward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
]
