"""Train the RNN captioner: python train_rnn.py --help"""

from rnn_lstm_captioning.__main__ import run

if __name__ == "__main__":
    run("train", cell="rnn")
