"""Evaluate an LSTM checkpoint, or caption your own pictures: python test_lstm.py --help"""

from rnn_lstm_captioning.cli import run_command, test_main

if __name__ == "__main__":
    run_command(lambda: test_main("lstm"))
