"""Look inside a captioner: python -m rnn_lstm_captioning.inspect --checkpoint FILE --image PHOTO

Writes a figure and a JSON file: at every step of the greedy caption the gates, the cell state, the hidden state's
norm, the most probable words and the attention. With --gradients: how a gradient's norm changes on its way back
through time, in trained cells and in new ones of the same size.
"""

import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from .captioner import CELLS
from .cells import (
    attention_step_backward,
    attention_step_forward,
    dot_product_attention,
    dot_product_attention_backward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_step_backward,
    rnn_step_forward,
)
from .command import ArgumentParser, positive, run_command
from .data.images import load_image
from .decoding import next_scores
from .errors import InputError
from .inference import load_captioner
from .layers import evaluating
from .storage import replacing
from .visualize import attention_overlay
from .vocabulary import END, START

GATES = ("input gate i", "forget gate f", "output gate o", "new content g")


def get_args_parser():
    parser = ArgumentParser(prog="python -m rnn_lstm_captioning.inspect", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE", help="--gradients takes several")
    parser.add_argument("--image", metavar="PATH", help="the picture whose caption is looked at")
    parser.add_argument("--gradients", action="store_true", help="gradients on their way back through time")
    parser.add_argument("--top", type=positive(int), default=5, metavar="N", help="words per step (%(default)s)")
    parser.add_argument("--max-length", type=positive(int), default=15, metavar="N", help="(%(default)s)")
    parser.add_argument("--steps", type=positive(int), default=40, metavar="T", help="with --gradients (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR", help="(%(default)s)")
    return parser


def main(arguments=None):
    args = get_args_parser().parse_args(arguments)
    if bool(args.image) == args.gradients:
        raise InputError("give either --image PATH or --gradients")
    if args.image and len(args.checkpoint) > 1:
        raise InputError("--image looks into one checkpoint; --gradients compares several")
    captioners = [load_captioner(path, "cpu") for path in args.checkpoint]
    if args.image:
        try:
            image = load_image(args.image, captioners[0].stored_size)
        except (OSError, ValueError) as error:
            raise InputError(f"{args.image}: {error}") from error
        found = trace(captioners[0].model, image, args.max_length, args.top)
        stem = args.out / f"{Path(args.image).stem}_inside"
        save(stem, found, draw_trace(image, found))
        print(f"{args.image}: {found['caption']}")
    else:
        curves = {}
        for path, captioner in zip(args.checkpoint, captioners):
            for name, norms in gradients_of(captioner.model, args.steps).items():
                curves[f"{path}, {name}" if name in curves else name] = norms
        stem = args.out / "gradients"
        save(stem, curves, draw_gradients(curves))
        for name, norms in curves.items():
            print(
                f"{name}: after 10 steps {norms[10] / norms[0]:.2g} of the gradient is left"
                if args.steps > 10
                else name
            )
    print(f"wrote {stem}.png and {stem}.json")


def save(stem, found, figure):
    with replacing(f"{stem}.json") as unfinished:
        unfinished.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    with replacing(f"{stem}.png") as unfinished:
        figure.savefig(unfinished, dpi=110)


# -------------------------------------------------------------------------------- one caption


def trace(model, image, max_length, top):
    """The greedy caption of a picture, uint8 (3, S, S), and what went on at every step: a dict of plain values."""
    steps, words = [], torch.tensor([START])
    with evaluating(model):
        state, picture = model.begin(model.encode(image[None]))
        for _ in range(max_length):
            before, x = state, model.word_embedding(words)
            gates = gates_of(model, x, before, picture)
            scores, state, weights = next_scores(model, words, state, picture, allow_unk=False)
            log_probs = scores.log_softmax(1)[0]
            best = log_probs.topk(min(top, len(log_probs)))
            words = best.indices[:1]
            step = {"word": model.idx_to_word[words.item()], "log_prob": best.values[0].item(), "gates": gates}
            step["top"] = [
                [model.idx_to_word[i], math.exp(p)] for p, i in zip(best.values.tolist(), best.indices.tolist())
            ]
            step["hidden_norm"] = state[0].norm().item()
            step["cell"] = state[1][0].tolist() if len(state) > 1 else None
            step["attention"] = None if weights is None else weights[0].tolist()
            steps.append(step)
            if words.item() == END:
                break
    spoken = [step["word"] for step in steps if step["word"] != "<END>"]
    return {"cell": model.cell_type, "caption": " ".join(spoken), "steps": steps}


def gates_of(model, x, state, picture):
    """i, f, o and g of one step, as lists of H numbers; None for the RNN, which has none."""
    if model.cell_type == "rnn":
        return None
    cell = model.cell
    a = x @ cell.Wx + state[0] @ cell.Wh + cell.b
    if model.cell_type == "attn":
        a = a + dot_product_attention(state[0], *picture)[0] @ cell.Wattn
    i, f, o, g = a[0].chunk(4)
    return dict(zip(GATES, (values.tolist() for values in (i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()))))


def draw_trace(image, found):
    """The figure of a trace: what is said, what else might have been, and what the state did."""
    steps = found["steps"]
    T, labels = len(steps), [step["word"] for step in steps]
    maps = {}
    if steps[0]["gates"]:
        maps = {name: torch.tensor([step["gates"][name] for step in steps]).T for name in GATES}
        maps["cell state c"] = torch.tensor([step["cell"] for step in steps]).T
    looks = steps[0]["attention"] is not None
    heights = [1.6] * looks + [1.6, 1.0] + [1.2] * len(maps)
    figure = Figure(figsize=(max(7, 1.5 * T + 1.5), 1.6 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), T, height_ratios=heights)
    figure.suptitle(f"{found['cell']}: {found['caption']}")
    row = 0
    if looks:
        for t, step in enumerate(steps):
            axes = figure.add_subplot(grid[0, t])
            axes.imshow(attention_overlay(image, torch.tensor(step["attention"])).permute(1, 2, 0).numpy())
            axes.set_title(labels[t], fontsize=8)
            axes.axis("off")
        row = 1
    for t, step in enumerate(steps):
        axes = figure.add_subplot(grid[row, t])
        words, probs = zip(*reversed(step["top"]))
        axes.barh(range(len(words)), probs, color="tab:blue", alpha=0.5)
        for k, word in enumerate(words):
            axes.text(0.03, k, word, fontsize=7, va="center")
        axes.set(xlim=(0, 1), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if t == 0:
            axes.set_ylabel("most probable\nnext words", fontsize=8)
    axes = figure.add_subplot(grid[row + 1, :])
    axes.plot(range(T), [step["hidden_norm"] for step in steps], marker="o", markersize=3)
    axes.set(xlim=(-0.5, T - 0.5), xticks=range(T), xticklabels=labels)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_ylabel("norm of h", fontsize=8)
    axes.grid(alpha=0.3)
    for k, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(grid[row + 2 + k, :])
        values = values[values.mean(1).argsort(descending=True)]
        limit = values.abs().max().item()
        limits = dict(vmin=0, vmax=1, cmap="viridis") if "gate" in name else dict(vmin=-limit, vmax=limit, cmap="RdBu")
        figure.colorbar(
            axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", **limits), ax=axes, pad=0.01
        )
        axes.set(xticks=range(T), xticklabels=labels, yticks=[])
        axes.set_ylabel(f"{name}\n{len(values)} units, by mean", fontsize=8)
    return figure


# ------------------------------------------------------------------------- gradients through time


def gradients_of(model, steps):
    """The gradient's norm after 0, 1, ... steps back, in the trained cell and in a new one: dict of lists."""
    torch.manual_seed(0)
    D, H = model.word_embedding.W_embed.shape[1], model.cell.Wh.shape[0]
    new = CELLS[model.cell_type](D, H)
    with torch.no_grad():
        words = model.word_embedding.W_embed[torch.randint(4, len(model.idx_to_word), (32, steps))]  # (N, T, D)
        return {
            f"{model.cell_type}, trained": norms_backwards(model.cell_type, model.cell, words),
            f"{model.cell_type}, new": norms_backwards(model.cell_type, new, torch.randn_like(words)),
        }


def norms_backwards(kind, cell, x):
    """Run a cell over x (N, T, D), send a random gradient back from the last h, and take the norm of what arrives at
    the state (h, or h and c) of every step: the mean over the batch, from the last step to the first."""
    N, T, _ = x.shape
    H = cell.Wh.shape[0]
    h, c, A, caches = x.new_zeros(N, H), x.new_zeros(N, H), torch.randn(N, H, 3, 3, dtype=x.dtype), []
    weights = [getattr(cell, name) for name in ("Wx", "Wh", "Wattn", "b") if hasattr(cell, name)]
    for t in range(T):
        if kind == "rnn":
            h, cache = rnn_step_forward(x[:, t], h, *weights)
        elif kind == "lstm":
            h, c, cache = lstm_step_forward(x[:, t], h, c, *weights)
        else:
            attn, attn_weights = dot_product_attention(h, A)
            query = h
            h, c, cache = attention_step_forward(x[:, t], h, c, attn, *weights)
            cache = cache, query, attn_weights
        caches.append(cache)
    dh, dc = torch.randn(N, H, dtype=x.dtype), x.new_zeros(N, H)
    norms = []
    for cache in reversed(caches):
        norms.append(torch.cat([dh, dc], dim=1).norm(dim=1).mean().item())
        if kind == "rnn":
            dh = rnn_step_backward(dh, cache)[1]
        elif kind == "lstm":
            dh, dc = lstm_step_backward(dh, dc, cache)[1:3]
        else:
            cache, query, attn_weights = cache
            _, dh, dc, dattn, *_ = attention_step_backward(dh, dc, cache)
            dh = dh + dot_product_attention_backward(dattn, query, A, attn_weights)[0]
    return norms


def draw_gradients(curves):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="steps back in time", ylabel="norm of the gradient, the last step's = 1")
    for name, norms in curves.items():
        axes.semilogy([norm / norms[0] for norm in norms], "--" if name.endswith("new") else "-", label=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run_command(main)
