"""Look inside a captioner: what happens at every step of a caption, and how gradients change back in time."""

import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..cells import CELLS, RecurrentCell
from ..data.vocabulary import END, START
from ..evaluation.figures import attention_overlay, in_all_fonts, write_figure
from ..model.captioner import CaptioningRNN, evaluating
from ..model.decoding import next_scores
from ..storage import write_text
from ..text import printable
from .explaining import explain


def save_figure(stem: str | Path, found: dict, figure: Figure) -> None:
    """Write ``stem.json`` and ``stem.png``."""
    write_text(f"{stem}.json", json.dumps(found, ensure_ascii=False))
    write_figure(figure, f"{stem}.png", dpi=110)


# -------------------------------------------------------------------------------- one caption


def trace(model: CaptioningRNN, image: Tensor, max_length: int = 15, top: int = 5) -> dict:
    """The greedy caption of an image, uint8 (3, S, S), and what happened at every step, as plain values.

    Returns: "cell", "caption", and "steps", a list of dicts: "word", "log_prob", "gates" (name -> H values), "top"
        (words with their probabilities), "hidden_norm", "attention" (grid_h lists of grid_w weights, or None),
        "gradient" and "occlusion" (of the regions, in the same shape; see :func:`explain`), "word_gradient" and
        "word_occlusion" (of the words read so far, ``<START>`` first).
    """
    steps: list[dict] = []
    words = torch.tensor([START])
    with evaluating(model):
        features = model.encode(image[None])
        state, cell_image = model.start(features)
        for _ in range(max_length):
            gates = model.cell.gates(model.word_embedding(words), state, cell_image)
            scores, state, weights = next_scores(model, words, state, cell_image, allow_unk=False)
            log_probs = scores.log_softmax(1)[0]
            best = log_probs.topk(min(top, len(log_probs)))
            words = best.indices[:1]
            likely = zip(best.indices.tolist(), best.values.tolist())
            steps.append(
                {
                    "word": model.idx_to_word[int(words)],
                    "log_prob": best.values[0].item(),
                    "gates": {name: values[0].tolist() for name, values in gates.items()},
                    "top": [[model.idx_to_word[word], math.exp(log_prob)] for word, log_prob in likely],
                    "hidden_norm": state[0].norm().item(),
                    "attention": None if weights is None else weights[0].tolist(),
                }
            )
            if words.item() == END:
                break
    written = [step["word"] for step in steps if step["word"] != "<END>"]
    caption, found = " ".join(written), explain(model, features, written)
    for t, step in enumerate(steps):
        step["gradient"], step["occlusion"] = found.region_gradient[t].tolist(), found.region_occlusion[t].tolist()
        step["word_gradient"] = found.word_gradient[t, : t + 1].tolist()
        step["word_occlusion"] = found.word_occlusion[t, : t + 1].tolist()
    return {"cell": model.cell_type, "caption": caption, "steps": steps}


@in_all_fonts
def draw_trace(image: Tensor, found: dict) -> Figure:
    """The figure of a trace: where the model looked, the most probable words, and the values inside the cell."""
    steps = found["steps"]
    T, labels = len(steps), [printable(step["word"])[:40] for step in steps]
    ways = [way for way in ("attention", "gradient", "occlusion") if steps[0][way] is not None]
    maps = {name: torch.tensor([step["gates"][name] for step in steps]).T for name in steps[0]["gates"]}
    heights = [1.6] * len(ways) + [1.6, 1.0] + [1.2] * len(maps)
    figure = Figure(figsize=(max(7, 1.5 * T + 1.5), 1.6 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), T, height_ratios=heights)
    figure.suptitle(printable(f"{found['cell']}: {found['caption']}")[:400], parse_math=False)
    rows = len(ways)
    for t, step in enumerate(steps):
        for row, way in enumerate(ways):
            axes = figure.add_subplot(grid[row, t])
            _draw_regions(axes, image, torch.tensor(step[way]), step["word"] if row == 0 else "")
            if t == 0:
                axes.set_ylabel(way, fontsize=8)
        axes = figure.add_subplot(grid[rows, t])
        _draw_words(axes, step)
        if t == 0:
            axes.set_ylabel("most probable\nnext words", fontsize=8)
    axes = figure.add_subplot(grid[rows + 1, :])
    axes.plot(range(T), [step["hidden_norm"] for step in steps], marker="o", markersize=3)
    axes.set(xlim=(-0.5, T - 0.5))
    _label_steps(axes, labels)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_ylabel("norm of h", fontsize=8)
    axes.grid(alpha=0.3)
    for k, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(grid[rows + 2 + k, :])
        _draw_units(figure, axes, name, values)
        _label_steps(axes, labels)
    return figure


def _label_steps(axes, labels):
    axes.set(xticks=range(len(labels)), xticklabels=labels)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)


def _draw_regions(axes, image, values, title):
    """Attention weights, or how much each region speaks for the word; what speaks against it is dark."""
    axes.imshow(attention_overlay(image, values.clamp(min=0)).permute(1, 2, 0).numpy())
    axes.set_title(printable(title)[:40], fontsize=8, parse_math=False)
    axes.set(xticks=[], yticks=[])


def _draw_words(axes, step):
    words, probs = zip(*reversed(step["top"]))
    axes.barh(range(len(words)), probs, color="tab:blue", alpha=0.5)
    for k, word in enumerate(words):
        axes.text(0.03, k, printable(word)[:40], fontsize=7, va="center", parse_math=False)
    axes.set(xlim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_units(figure, axes, name, values):
    """Values (H, T): one row for each unit, sorted by mean."""
    values = values[values.mean(1).argsort(descending=True)]
    limit = values.abs().max().item()
    limits = dict(vmin=0, vmax=1, cmap="viridis") if "gate" in name else dict(vmin=-limit, vmax=limit, cmap="RdBu")
    figure.colorbar(axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", **limits), ax=axes, pad=0.01)
    axes.set(yticks=[])
    axes.set_ylabel(f"{name}\n{len(values)} units, by mean", fontsize=8)


# ------------------------------------------------------------------------- gradients through time


def gradient_norms(model: CaptioningRNN, steps: int) -> dict[str, list[float]]:
    """The norm of a gradient after 0, 1, ... steps back in time, in the trained cell and in a new one."""
    torch.manual_seed(0)
    new = CELLS[model.cell_type](model.wordvec_dim, model.hidden_dim)
    words = model.word_embedding.W_embed.detach()[torch.randint(4, len(model.idx_to_word), (32, steps))]  # (N, T, D)
    return {
        f"{model.cell_type}, trained": norms_back_in_time(model.cell, words, model.hidden_dim),
        f"{model.cell_type}, new": norms_back_in_time(new, torch.randn_like(words), model.hidden_dim),
    }


def norms_back_in_time(cell: RecurrentCell, x: Tensor, hidden_dim: int) -> list[float]:
    """Run a cell over x (N, T, D), start with a random gradient at the last h, and carry it back one step at a time.

    The first state is zero; a cell that uses the grid gets a random grid. Returns: the norm of the gradient of the
    whole state, the mean over the batch, from the last step to the first.
    """
    N, T, _ = x.shape
    H = hidden_dim
    image = torch.randn(N, H, 3, 3, dtype=x.dtype) if cell.uses_grid else x.new_zeros(N, H)
    state = tuple(torch.zeros_like(part) for part in cell.start(image))
    passes = []  # of each step: the state before it, as leaves of autograd's graph, and the state after it
    for t in range(T):
        before = tuple(part.detach().requires_grad_() for part in state)
        state, _ = cell.step(x[:, t], before, image)
        passes.append((before, state))
    gradients = [torch.randn_like(state[0]), *map(torch.zeros_like, state[1:])]
    norms = []
    for before, after in reversed(passes):
        norms.append(torch.cat(gradients, dim=1).norm(dim=1).mean().item())
        gradients = list(torch.autograd.grad(after, before, gradients))
    return norms


def draw_gradients(curves: dict[str, list[float]]) -> Figure:
    """The norms against the steps back in time, one line for each cell."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="steps back in time", ylabel="norm of the gradient, the last step's = 1")
    for name, norms in curves.items():
        axes.semilogy([norm / norms[0] for norm in norms], "--" if name.endswith("new") else "-", label=name)
    axes.grid(alpha=0.3)
    for label in axes.legend(fontsize=8).get_texts():
        label.set_parse_math(False)  # it may be a file name with $ signs
    return figure
