"""Train the LSTM with attention captioner: python train_lstm_attention.py --help"""

from rnn_lstm_captioning.cli import run_command, train_main

if __name__ == "__main__":
    run_command(lambda: train_main("attn"))
