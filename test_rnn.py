"""Evaluate a checkpoint of the RNN captioner, or caption your own images: python test_rnn.py --help"""

from rnn_lstm_captioning.__main__ import run

if __name__ == "__main__":
    run("test", cell="rnn")
