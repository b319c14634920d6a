"""Does bf16 learn as well? Train in both precisions on the same data, and lay the loss curves over each other.

    python benchmarks/precision.py --data FILE --encoder mobilenet_v2 --encoder-weights FILE --epochs 5 --cell lstm

Takes the flags of train_*.py; features, cell and loss are all computed at the precision. Writes
docs/images/precision.png.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from matplotlib.figure import Figure
from rnn_lstm_captioning.cli_train import choose_data, get_train_parser, make_captioner, make_pairs
from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.training.precision import autocast

from rnn_lstm_captioning.training.trainer import Trainer


def main():
    parser = get_train_parser("rnn, lstm or attn")
    parser.add_argument("--cell", choices=["rnn", "lstm", "attn"], default="attn")
    args = parser.parse_args()
    args.device = args.device or "cpu"
    data, final = choose_data(args), {}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats per word)", title=f"{args.cell}, {data.source}")
    for precision, line in (("fp32", "-"), ("bf16", "--")):
        args.precision = precision
        torch.manual_seed(args.seed)
        captioner = make_captioner(args.cell, data, args)
        train, val = make_pairs(captioner, data, args)
        trainer = Trainer(captioner, train, val, args, lambda *_: None, autocast(args.device, precision))
        trainer.run()
        final[precision] = trainer.history[-1]["val_loss_per_word"]
        losses = ", ".join(f"{row['val_loss_per_word']:.4f}" for row in trainer.history)
        print(
            f"{precision}: validation, nats per word: {losses}; {trainer.captions_per_second:.0f} captions/s",
            flush=True,
        )
        for split, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            epochs, loss = zip(*((row["epoch"], row[f"{split}_loss_per_word"]) for row in trainer.history))
            axes.plot(epochs, loss, line, color=colour, marker="o", markersize=3, label=f"{split}, {precision}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(__file__).parents[1] / "docs/images/precision.png", dpi=110)
    print(f"bf16 ends {final['bf16'] / final['fp32'] - 1:+.2%} from fp32")


if __name__ == "__main__":
    run_command(main)
