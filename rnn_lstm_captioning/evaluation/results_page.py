"""A results page: one HTML file, which needs no server, with the best, the median and the worst captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import Tensor

from ..storage import write_text
from .captions import Caption
from .figures import attention_frames, attention_sheet, image_address

STYLE = """
body { font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f3f3f3; }
article { display: flex; gap: 1.5em; margin: 1.5em 0; border-top: 1px solid #ccc; padding-top: 1.5em; }
article > img { width: 224px; height: 224px; } article div img { max-width: 100%; }
.caption { font-size: 1.3em; margin: 0 0 .4em; } .scores, li { color: #666; }
"""


@dataclass
class Scored:
    """Captions of N images with their scores.

    Attributes: images, uint8 (N, 3, S, S); captions; references, for each image; per_image, metric -> N scores;
        CIDEr orders the examples; rows, the table: name -> (metric -> score of the whole set); finds_itself, the
        fraction of captions that are most probable given their own image, if it was measured.
    """

    images: Tensor
    captions: Sequence[Caption]
    references: Sequence[Sequence[str]]
    per_image: Mapping[str, Sequence[float]]
    rows: Mapping[str, Mapping[str, float]]
    finds_itself: float | None = None


def choose_examples(scores: Sequence[float], count: int) -> dict[str, list[int]]:
    """The indices of the best, the median and the worst of N scores, at most ``count`` of each.

    Returns: "best", "median", "worst" -> a list of indices, best first; no index occurs twice.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    count = min(count, len(order) // 3)
    middle = (len(order) - count) // 2
    return {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }


def save_results_page(path: str | Path, title: str, settings: str, scored: Scored, count: int = 8) -> None:
    """Write the page. Args: settings, a line of text; count, how many best, median and worst captions it shows."""
    metrics = list(scored.per_image)
    parts = [f"<!DOCTYPE html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{escape(title)}</h1><p>{escape(settings)}</p><table><tr><th>in percent</th>")
    parts += [f"<th>{metric}</th>" for metric in metrics]
    for name, scores in scored.rows.items():
        values = "".join(f"<td>{scores[metric]:.1f}</td>" for metric in metrics)
        parts.append(f"</tr><tr><td>{escape(name)}</td>{values}")
    parts.append("</tr></table>")
    for kind, chosen in choose_examples(scored.per_image["CIDEr"], count).items():
        parts.append(f"<h2>The {kind} captions, by CIDEr</h2>")
        parts += [_example(scored, index) for index in chosen]
    write_text(path, "\n".join(parts))


def _example(scored, index):
    image, caption = scored.images[index], scored.captions[index]
    scores = ", ".join(f"{metric} {values[index]:.0f}" for metric, values in scored.per_image.items())
    texts = "".join(f"<li>{escape(text)}</li>" for text in scored.references[index])
    attention = ""
    if caption.attention is not None and caption.words:
        frames = attention_frames(image, caption.words, caption.attention, side=112)
        attention = _image(attention_sheet(image, frames, columns=8), "where the model looked")
    return (
        f"<article>{_image(image, caption.text)}<div><p class=caption>{escape(caption.text)}</p>"
        f"<p class=scores>{scores}</p><ul>{texts}</ul>{attention}</div></article>"
    )


def _image(image, text):
    return f"<img alt='{escape(text, quote=True)}' src='{image_address(image)}'>"
