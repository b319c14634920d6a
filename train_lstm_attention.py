"""Train the LSTM captioner with attention: python train_lstm_attention.py --help"""

from rnn_lstm_captioning.__main__ import run

if __name__ == "__main__":
    run("train", cell="attn")
