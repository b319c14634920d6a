"""Train the LSTM captioner with attention: python train_lstm_attention.py --help"""

from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.commands.train import main

if __name__ == "__main__":
    run_command(lambda: main(cell="attn"))
