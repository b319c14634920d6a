"""Does the model look at the picture? Train each cell on features, and on zeros in their place.

    python benchmarks/blind.py --data FILE --encoder mobilenet_v2 --encoder-weights FILE --epochs 4

Takes the flags of train_*.py. What the pictures are worth is the difference of the validation
losses, in nats per word: the language model in the cell is the same in both runs.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from rnn_lstm_captioning.cli_train import choose_data, get_train_parser, make_captioner, make_pairs
from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.training.precision import autocast

from rnn_lstm_captioning.training.trainer import Trainer


def main():
    parser = get_train_parser("rnn, lstm or attn")
    parser.add_argument("--cells", nargs="+", choices=["rnn", "lstm", "attn"], default=["rnn", "lstm", "attn"])
    args = parser.parse_args()
    args.device = args.device or "cpu"
    data = choose_data(args)
    for cell in args.cells:
        best = {}
        for sight in ("pictures", "zeros"):
            torch.manual_seed(args.seed)
            captioner = make_captioner(cell, data, args)
            train, val = make_pairs(captioner, data, args)
            if sight == "zeros":
                train, val = (replace(pairs, features=torch.zeros_like(pairs.features)) for pairs in (train, val))
            start = time.monotonic()
            trainer = Trainer(captioner, train, val, args, lambda *_: None, autocast(args.device, args.precision))
            trainer.run()
            seconds = (time.monotonic() - start) / args.epochs
            best[sight] = min(row["val_loss_per_word"] for row in trainer.history)
            print(f"{cell}, {sight}: {best[sight]:.3f} nats per word, {seconds:.0f} s per epoch", flush=True)
        print(f"{cell}: the pictures are worth {best['zeros'] - best['pictures']:.3f} nats per word", flush=True)


if __name__ == "__main__":
    run_command(main)
