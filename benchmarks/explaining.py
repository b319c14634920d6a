"""Do attention, gradient and occlusion point at the right object? On the built-in scenes the truth is known.

    python -m benchmarks.explaining --checkpoint cv/attn_best.pt cv/lstm_best.pt

For each validation scene, and for each colour and shape word of its caption that names an object which is there (the
only one of its colour): is the region with the largest value in the object? "By chance" is the mean share of the
regions that the object touches.
"""

import argparse
import time
from collections import defaultdict

import torch

from rnn_lstm_captioning import load_captioner, load_captions
from rnn_lstm_captioning.classroom.explaining import explain
from rnn_lstm_captioning.data.scenes import COLOURS, SHAPES
from rnn_lstm_captioning.model.captioner import evaluating


def touched(image, colour, grid_h, grid_w):
    """image uint8 (3, S, S) -> which regions have pixels of this colour, bool (grid_h, grid_w)."""
    target = torch.tensor(COLOURS[colour]).view(3, 1, 1)
    mask = (image.int() - target).abs().amax(0) < 30  # (S, S)
    return torch.nn.functional.adaptive_max_pool2d(mask.float()[None], (grid_h, grid_w))[0] > 0


def named_objects(words):
    """The colours of a caption with the positions of the words that name an object of this colour."""
    for t, word in enumerate(words):
        if word in COLOURS and words.count(word) == 1:
            yield word, [t, *([t + 1] if t + 1 < len(words) and words[t + 1] in SHAPES else [])]


def measure(captioner, images):
    """Returns: hits, (kind of word, way) -> list of booleans; shares by chance, kind -> list; seconds of each image."""
    hits, chances, seconds = defaultdict(list), defaultdict(list), []
    captions = captioner.caption_images(images)
    for image, caption in zip(images, captions):
        with evaluating(captioner.model):
            features = captioner.model.encode(image[None])
        start = time.perf_counter()
        found = explain(captioner.model, features, caption.words)
        seconds.append(time.perf_counter() - start)
        ways = {"attention": found.attention, "gradient": found.region_gradient, "occlusion": found.region_occlusion}
        for colour, places in named_objects(caption.words):
            inside = touched(image, colour, *features.shape[2:])
            if not inside.any():
                continue  # the caption is wrong
            for t in places:
                kind = "colour" if caption.words[t] in COLOURS else "shape"
                chances[kind].append(inside.float().mean().item())
                for way, values in ways.items():
                    if values is not None:
                        hits[kind, way].append(bool(inside.flatten()[values[t].argmax()]))
    return hits, chances, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", required=True)
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    images = load_captions("scenes").splits["val"].images[: args.images]
    print("| captioner | word | words | by chance | attention | gradient | occlusion |\n|" + "---|" * 7)
    for path in args.checkpoint:
        captioner = load_captioner(path, "cpu")
        hits, chances, seconds = measure(captioner, images)
        for kind in ("colour", "shape"):
            shares = [
                f"{sum(found) / len(found):.0%}" if (found := hits[kind, way]) else "-"
                for way in ("attention", "gradient", "occlusion")
            ]
            chance = sum(chances[kind]) / max(len(chances[kind]), 1)
            print(
                f"| {captioner.model.cell_type} | {kind} | {len(chances[kind])} | {chance:.0%} | {' | '.join(shares)} |"
            )
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"| {captioner.model.cell_type} | all three, for a caption: {1e3 * middle:.0f} ms |" + " - |" * 5)


if __name__ == "__main__":
    main()
