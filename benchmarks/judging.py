"""Judge captions by eye: how many are right, and what is wrong with the others?

    python -m benchmarks.judging --checkpoint A.pt B.pt --data FILE --folder judging  # sheets and judgements.csv
    python -m benchmarks.judging --folder judging                                     # the table, when it is filled in

Writes sheets of 20 images each, for 100 images spread evenly over the val split, with the captions of all checkpoints.
Their order is drawn anew for every image, so that the judge does not know which model wrote which. In judgements.csv
every caption gets one word: "right", "partly", or "wrong", and for the last two the kinds of error, such as
"partly object colour" (object, count, colour, action, place). The table has the shares, the kinds, and the mean CIDEr
of right and wrong captions.
"""

import argparse
import csv
import json
import random
import textwrap
from collections import Counter
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from torchvision.transforms.v2.functional import resize

from rnn_lstm_captioning import Decoding, load_captioner, load_captions
from rnn_lstm_captioning.evaluation.metrics import score_captions

IMAGES, PER_SHEET, COLUMNS = 100, 20, 4
VERDICTS, KINDS = ("right", "partly", "wrong"), ("object", "count", "colour", "action", "place")


def order_of(image, models):
    """The models in the order in which their captions of an image are shown."""
    order = list(range(models))
    random.Random(image).shuffle(order)
    return order


def write_sheets(args):
    val = load_captions(args.data).splits["val"]
    chosen = torch.linspace(0, len(val.images) - 1, IMAGES).long().tolist()
    captions, scores = [], []
    for path in args.checkpoint:
        captioner = load_captioner(path)
        images = resize(val.images, [captioner.stored_size] * 2, antialias=True)
        found = captioner.caption_images(images, Decoding.recommended())
        texts = [caption.text for caption in found]
        scores.append([score_captions(texts, val.references)[1]["CIDEr"][i] for i in chosen])
        captions.append([texts[i] for i in chosen])
    args.folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, IMAGES, PER_SHEET):
        figure = Figure(figsize=(16, 25), layout="constrained")
        axes = figure.subplots(PER_SHEET // COLUMNS, COLUMNS).flat
        for place, ax in zip(range(start, start + PER_SHEET), axes):
            ax.imshow(val.images[chosen[place]].permute(1, 2, 0))
            ax.set_axis_off()
            shown = [captions[model][place] for model in order_of(place, len(captions))]
            lines = [textwrap.fill(f"{letter}: {text}", 38) for letter, text in zip("ABCDEF", shown)]
            ax.set_title(f"{place}\n" + "\n".join(lines), fontsize=12, loc="left")
        figure.savefig(args.folder / f"sheet_{start // PER_SHEET}.png", dpi=64)
    with open(args.folder / "judgements.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *"ABCDEF"[: len(captions)]])
        writer.writerows([place, *[""] * len(captions)] for place in range(IMAGES))
    (args.folder / "models.json").write_text(json.dumps({"models": list(map(str, args.checkpoint)), "cider": scores}))
    print(f"wrote {args.folder}: fill in judgements.csv")


def print_table(folder):
    known = json.loads((folder / "models.json").read_text())
    with open(folder / "judgements.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    print(f"| | {' | '.join(VERDICTS)} | {' | '.join(KINDS)} | CIDEr of right, partly, wrong |\n|{'---|' * 10}")
    for model, name in enumerate(known["models"]):
        verdicts, kinds, ciders = Counter(), Counter(), {verdict: [] for verdict in VERDICTS}
        for place, *judged in rows:
            verdict, *wrong = judged[order_of(int(place), len(known["models"])).index(model)].split()
            assert verdict in VERDICTS and set(wrong) <= set(KINDS), f"image {place}: {judged}"
            verdicts[verdict] += 1
            kinds.update(wrong)
            ciders[verdict].append(known["cider"][model][int(place)])
        means = ", ".join(f"{mean(values):.0f}" if values else "-" for values in ciders.values())
        counts = [verdicts[v] for v in VERDICTS] + [kinds[k] for k in KINDS]
        print(f"| {name} | {' | '.join(map(str, counts))} | {means} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    if args.checkpoint:
        write_sheets(args)
    else:
        print_table(args.folder)


if __name__ == "__main__":
    main()
