"""Train the LSTM captioner: python train_lstm.py --help"""

from rnn_lstm_captioning.__main__ import run

if __name__ == "__main__":
    run("train", cell="lstm")
