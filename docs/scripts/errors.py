"""What does a single wrong word cost? Right captions of scenes, with one mistake in each, scored against the others.

python -m docs.scripts.errors         # prints the table of docs/errors.md, and draws docs/images/errors.png
"""

import random
from pathlib import Path

from matplotlib.figure import Figure

from rnn_lstm_captioning.data.scenes import COLOURS, RELATIONS, SHAPES, draw_scene
from rnn_lstm_captioning.evaluation.metrics import score_captions

SCENES = 500
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def with_another(caption: str, words: list[str], chance: random.Random) -> str:
    """The caption with another one of these words in the place of the first of them."""
    found = min((word for word in words if word in caption.split()), key=caption.split().index)
    return caption.replace(found, chance.choice([word for word in words if word != found]), 1)


def mistakes(caption: str, chance: random.Random) -> dict[str, str]:
    """The caption of a scene with two objects, and the same with one mistake of each kind."""
    relation = next(relation for relation in RELATIONS.values() if relation in caption)
    return {
        "right": caption,
        "wrong colour": with_another(caption, list(COLOURS), chance),
        "wrong object": with_another(caption, SHAPES, chance),
        "wrong place": caption.replace(relation, OPPOSITE[relation]),
    }


def main() -> None:
    chance = random.Random(2)
    scenes = []
    while len(scenes) < SCENES:
        picture, texts = draw_scene(chance)
        if any(relation in texts[0] for relation in RELATIONS.values()):
            scenes.append((picture, texts, mistakes(texts[0], chance)))
    references = [texts[1:] for _, texts, _ in scenes]
    print("| | BLEU-4 | CIDEr |\n|---|---|---|")
    for kind in scenes[0][2]:
        scores, _ = score_captions([captions[kind] for *_, captions in scenes], references)
        print(f"| {kind} | {scores['BLEU-4']:.1f} | {scores['CIDEr']:.0f} |")
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for ax, (picture, _, captions), kind in zip(figure.subplots(1, 4), scenes, scenes[0][2]):
        ax.imshow(picture.permute(1, 2, 0))
        ax.set_axis_off()
        words = captions[kind].split()
        middle = len(words) // 2
        ax.set_title(f"{kind}:\n{' '.join(words[:middle])}\n{' '.join(words[middle:])}", fontsize=11)
    figure.savefig(Path(__file__).parents[1] / "images" / "errors.png", dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main()
