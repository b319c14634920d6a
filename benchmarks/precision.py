"""Does bf16 learn as well? Train in both precisions on the same data, and draw the loss curves into one figure.

    python -m benchmarks.precision --data FILE --encoder mobilenet_v2 --encoder-weights FILE --epochs 5 --cell lstm

Takes the flags of train_*.py. Features, cell and loss are all computed in the given precision. Writes
docs/images/precision.png.
"""

from pathlib import Path

from matplotlib.figure import Figure

from rnn_lstm_captioning.commands.common import run_command
from rnn_lstm_captioning.commands.flags import train_flags
from rnn_lstm_captioning.commands.train import choose_data
from rnn_lstm_captioning.training.trainer import Trainer

from .runs import prepare


def main():
    args = train_flags().parse_args()
    cell = args.cell or "attn"
    data, final = choose_data(args), {}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats per word)", title=f"{cell}, {data.source}")
    for precision, line in (("fp32", "-"), ("bf16", "--")):
        captioner, train, val, settings = prepare(args, cell, data, precision)
        trainer = Trainer(captioner, train, val, settings)
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
    print(f"the final loss in bf16 differs by {final['bf16'] / final['fp32'] - 1:+.2%} from that in fp32")


if __name__ == "__main__":
    run_command(main)
