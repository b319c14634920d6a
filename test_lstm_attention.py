"""Evaluate an LSTM with attention checkpoint, or caption your own pictures: python test_lstm_attention.py --help"""

from rnn_lstm_captioning.cli import run_command, test_main

if __name__ == "__main__":
    run_command(lambda: test_main("attn"))
