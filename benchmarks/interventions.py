"""What is each gate for? Captions of trained models while one part is held, erased or exchanged.

    python -m benchmarks.interventions --checkpoint cv/attn_best.pt cv/lstm_best.pt --out docs/images/interventions.png

Greedy captions of the validation split. "Exact" is the share that is word for word a reference.
"""

import argparse

import torch
from matplotlib.figure import Figure

from rnn_lstm_captioning import Decoding, load_captioner, load_captions
from rnn_lstm_captioning.classroom.interventions import Intervened, Intervention, gate_names
from rnn_lstm_captioning.data.vocabulary import END, NULL, tokenize
from rnn_lstm_captioning.evaluation.metrics import cider
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.decoding import decode


def interventions(model, features):
    """Name -> :class:`Intervention`, those that the model's cell can have."""
    found = {"nothing": Intervention()}
    for name in gate_names(model):
        for value in (0, 0.5, 1):
            found[f"{name} = {value:g}"] = Intervention(gates={name: value})
    states = len(model.start(features[:1])[0])
    for place, name in enumerate(("h", "c")[:states]):
        found[f"{name} erased before word 5"] = Intervention(erase=(place, 5))
    other = features[:1]
    if model.cell.uses_grid:
        found |= {
            "attention uniform": Intervention(attention="uniform"),
            "attention on one region": Intervention(attention=(0, 0)),
            "another image from word 5 on": Intervention(other=other, other_from=5),
        }
    found["first state of another image"] = Intervention(start=other)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", required=True)
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", help="a PNG")
    args = parser.parse_args()
    val = load_captions(args.data).splits["val"]
    references, images = val.references[: args.images], val.images[: args.images]
    right = [{tuple(tokenize(text)) for text in texts} for texts in references]
    print("| captioner | changed | CIDEr | exact | words | a caption |\n|" + "---|" * 6)
    scores = {}
    for path in args.checkpoint:
        captioner = load_captioner(path, "cpu")
        model, cell = captioner.model, captioner.model.cell_type
        with evaluating(model):
            features = torch.cat([model.encode(part) for part in images.split(64)])
            for name, change in interventions(model, features).items():
                rows = decode(Intervened(model, change), features, Decoding()).captions.tolist()
                captions = [[model.idx_to_word[w] for w in row if w not in (NULL, END)] for row in rows]
                score = cider([" ".join(words) for words in captions], references)
                exact = sum(tuple(words) in texts for words, texts in zip(captions, right)) / len(captions)
                length = sum(map(len, captions)) / len(captions)
                scores.setdefault(name, {})[cell] = score
                print(
                    f"| {cell} | {name} | {score:.0f} | {exact:.0%} | {length:.1f} | {' '.join(captions[1])} |",
                    flush=True,
                )
    if args.out:
        cells = list(dict.fromkeys(cell for found in scores.values() for cell in found))
        figure = Figure(figsize=(8, 0.1 * len(scores) * max(2, len(cells)) + 1), layout="constrained")
        axes = figure.add_subplot(xlabel="CIDEr")
        for k, cell in enumerate(cells):
            places = [place + 0.8 * (k - (len(cells) - 1) / 2) / len(cells) for place in range(len(scores))]
            axes.barh(places, [found.get(cell, 0) for found in scores.values()], 0.8 / len(cells), label=cell)
        axes.set_yticks(range(len(scores)), list(scores))
        axes.invert_yaxis()
        axes.legend()
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(args.out, dpi=90)
        print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
