"""Evaluate a checkpoint of the LSTM captioner, or caption your own images: python test_lstm.py --help"""

from rnn_lstm_captioning.__main__ import run

if __name__ == "__main__":
    run("test", cell="lstm")
