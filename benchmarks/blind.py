"""How much does the model learn from the image? Train each cell on features, and again on zeros in their place.

    python -m benchmarks.blind --data FILE --encoder mobilenet_v2 --encoder-weights FILE --epochs 4

Takes the flags of train_*.py. The difference of the two validation losses, in nats per word, is what the model learns
from the image: everything else is the same in both runs.
"""

import time
from dataclasses import replace

import torch

from rnn_lstm_captioning.cells import CELLS
from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.commands.flags import train_flags
from rnn_lstm_captioning.commands.train import choose_data
from rnn_lstm_captioning.training.trainer import Trainer

from .runs import prepare


def main():
    parser = train_flags()
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=["rnn", "lstm", "attn"])
    args = parser.parse_args()
    data = choose_data(args)
    for cell in args.cells:
        best = {}
        for sight in ("images", "zeros"):
            captioner, train, val, settings = prepare(args, cell, data)
            if sight == "zeros":
                train, val = (replace(pairs, features=torch.zeros_like(pairs.features)) for pairs in (train, val))
            start = time.monotonic()
            trainer = Trainer(captioner, train, val, settings)
            trainer.run()
            seconds = (time.monotonic() - start) / args.epochs
            best[sight] = min(row["val_loss_per_word"] for row in trainer.history)
            print(f"{cell}, {sight}: {best[sight]:.3f} nats per word, {seconds:.0f} s per epoch", flush=True)
        print(f"{cell}: the images lower the loss by {best['zeros'] - best['images']:.3f} nats per word", flush=True)


if __name__ == "__main__":
    run_command(main)
