"""Evaluate an RNN checkpoint, or caption your own pictures: python test_rnn.py --help"""

from rnn_lstm_captioning.cli_test import test_main
from rnn_lstm_captioning.command import run_command

if __name__ == "__main__":
    run_command(lambda: test_main("rnn"))
