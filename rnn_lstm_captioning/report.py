"""A results page: one HTML file without a server, with the best, the median and the worst captions."""

from base64 import b64encode
from html import escape

from .storage import replacing
from .visualize import attention_frames, attention_sheet, jpeg_bytes

STYLE = """
body { font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f3f3f3; }
article { display: flex; gap: 1.5em; margin: 1.5em 0; border-top: 1px solid #ccc; padding-top: 1.5em; }
article > img { width: 224px; height: 224px; } article div img { max-width: 100%; }
.caption { font-size: 1.3em; margin: 0 0 .4em; } .scores, li { color: #666; }
"""


def choose_examples(scores, count):
    """The rows of a list of N scores with the best, the median and the worst ones, ``count`` of each at most.

    Returns: a dict: "best", "median", "worst" -> a list of rows, best first; no row occurs twice.
    """
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    count = min(count, len(order) // 3)
    middle = (len(order) - count) // 2
    return {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }


def save_results_page(path, title, settings, rows, images, captions, references, per_image, count=8):
    """Write the page.

    Args: title; settings, a line of text; rows, a dict: name -> (metric -> score), the table; images uint8
        (N, 3, S, S); captions, a list of N :class:`Caption`; references, a list of N lists of strings;
        per_image, a dict: metric -> list of N scores, of which CIDEr orders the examples; count, how many
        best, median and worst captions are shown.
    """
    metrics = list(per_image)
    parts = [f"<!DOCTYPE html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{escape(title)}</h1><p>{escape(settings)}</p><table><tr><th>in percent</th>")
    parts += [f"<th>{metric}</th>" for metric in metrics]
    for name, scores in rows.items():
        cells = "".join(f"<td>{scores[metric]:.1f}</td>" for metric in metrics)
        parts.append(f"</tr><tr><td>{escape(name)}</td>{cells}")
    parts.append("</tr></table>")
    for kind, chosen in choose_examples(per_image["CIDEr"], count).items():
        parts.append(f"<h2>The {kind} captions, by CIDEr</h2>")
        for row in chosen:
            caption = captions[row]
            scores = ", ".join(f"{metric} {per_image[metric][row]:.0f}" for metric in metrics)
            texts = "".join(f"<li>{escape(text)}</li>" for text in references[row])
            attention = ""
            if caption.attention is not None and caption.tokens:
                frames = attention_frames(images[row], caption.tokens, caption.attention, side=112)
                attention = _picture(attention_sheet(images[row], frames, columns=8), "where the model looked")
            parts.append(
                f"<article>{_picture(images[row], caption.text)}<div><p class=caption>{escape(caption.text)}</p>"
                f"<p class=scores>{scores}</p><ul>{texts}</ul>{attention}</div></article>"
            )
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(parts), encoding="utf-8")


def _picture(image, text):
    data = b64encode(jpeg_bytes(image)).decode()
    return f"<img alt='{escape(text, quote=True)}' src='data:image/jpeg;base64,{data}'>"
