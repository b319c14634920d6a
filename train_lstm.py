"""Train the LSTM captioner: python train_lstm.py --help"""

from rnn_lstm_captioning.cli_train import train_main
from rnn_lstm_captioning.command import run_command

if __name__ == "__main__":
    run_command(lambda: train_main("lstm"))
