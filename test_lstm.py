"""Evaluate a checkpoint of the LSTM captioner, or caption your own images: python test_lstm.py --help"""

from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.commands.test import main

if __name__ == "__main__":
    run_command(lambda: main(cell="lstm"))
