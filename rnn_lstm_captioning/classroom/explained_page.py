"""A page that explains captions, in one HTML file: no server, no network. ``inspect --html FILE`` writes it.

The page shows, for each word of a caption, where attention, gradient and occlusion point, the gates and states, and
the other probable words. For a captioner of the built-in scenes the page also carries the weights and runs the encoder
and the cell in the browser (explained.js), so that the reader can move the objects and hold the gates.
"""

import base64
import inspect
import json
import operator
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from ..data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES
from ..data.vocabulary import END
from ..evaluation.captions import ImageCaptioner
from ..evaluation.figures import image_address
from ..model.captioner import CaptioningRNN, evaluating
from ..model.decoding import Decoding
from ..storage import write_text
from .explaining import explain, walk
from .interventions import gate_names

LIVE_CELLS = ("rnn", "lstm", "gru", "attn")  # those that explained.js has
MEANINGS = {  # of the gates and states, for readers who have not seen an equation yet
    "input gate i": "how much of the new content is added to the cell state",
    "forget gate f": "how much of the cell state is kept",
    "output gate o": "how much of the cell state is shown",
    "new content g": "what the word and the state before it propose to add",
    "cell state c": "the memory: kept, forgotten and added to, unit by unit",
    "reset gate r": "how much of the previous state the new content may use",
    "update gate z": "how much of the previous state is kept",
    "new content n": "what replaces the part of the state that is not kept",
}
LIVE_LIMIT = 550_000  # weights; as float32 in base64 they take 2.9 MB


def write_page(path: str | Path, captions: Sequence[dict], live: dict | None = None) -> None:
    """Write the page. Args: captions, from :func:`caption_data`; live, from :func:`live_data`."""
    here = Path(__file__).parent
    data = json.dumps({"captions": captions, "live": live}, ensure_ascii=False).replace("<", "\\u003c")
    text = (here / "explained.html").read_text(encoding="utf-8")
    for mark, value in (
        ("/*STYLE*/", (here / "explained.css").read_text(encoding="utf-8")),
        ("/*SCRIPT*/", (here / "explained.js").read_text(encoding="utf-8")),
        ("/*DATA*/", data),
    ):
        text = text.replace(mark, value)
    write_text(path, text)


# ------------------------------------------------------------------------------------- one caption


def caption_data(
    captioner: ImageCaptioner, image: Tensor, name: str, decoding: Decoding | None = None, top: int = 5
) -> dict:
    """The caption of an image, uint8 (3, S, S), and its explanation, as values for the page.

    Args: name, of the captioner and the image, as the page shows it; decoding, how the caption is written.
    """
    model = captioner.model
    (caption,) = captioner.caption_images(image[None], decoding)
    with evaluating(model):
        features = model.encode(image[None].to(captioner.device))
    found = explain(model, features, caption.words)
    words = captioner.next_words(features, caption.words, top)
    return {
        "name": name,
        "image": _picture(image),
        "words": found.words,
        "logProbs": _plain(found.log_probs, 6),
        "grid": list(found.region_gradient.shape[1:]),
        "attention": None if found.attention is None else _plain(found.attention.flatten(1), 4),
        "gradient": _plain(found.region_gradient.flatten(1), 5),
        "occlusion": _plain(found.region_occlusion.flatten(1), 5),
        "wordGradient": _plain(found.word_gradient, 4),
        "wordOcclusion": _plain(found.word_occlusion, 4),
        "top": [[[word, round(p, 6)] for word, p in row] for row in words],
        "gates": _gates(model, features, caption.words),
    }


def _plain(values, digits):
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().tolist()
    return [_plain(value, digits) for value in values] if isinstance(values, list) else round(values, digits)


def _picture(image):
    """The address of an image inside the page: a PNG if that is small, as of a scene, else a JPEG."""
    png = image_address(image, "png")
    return png if len(png) <= 80_000 else image_address(image)


def _gates(model, features, words):
    """Each named value of the cell at every step: one byte per unit, the units in the order of their means."""
    read = torch.tensor([model.word_to_idx[word] for word in ("<START>", *words)], device=features.device)
    steps: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for x, state, image, _ in walk(model, features, read):
            for name, value in model.cell.gates(x, state, image).items():
                steps.setdefault(name, []).append(value[0].float().cpu())
    found = []
    for name, values in steps.items():
        units = torch.stack(values, dim=1)  # (H, T)
        units = units[units.mean(1).argsort(descending=True)]
        low, high = (0.0, 1.0) if "gate" in name else (-units.abs().max().item(), units.abs().max().item())
        scaled = ((units - low) / max(high - low, 1e-9) * 255).round().clamp(0, 255).to(torch.uint8)
        found.append(
            {
                "name": name,
                "low": low,
                "high": high,
                "units": len(units),
                "values": base64.b64encode(scaled.numpy().tobytes()).decode(),
                "equation": equation_of(model, name),
                "meaning": MEANINGS.get(name, ""),
            }
        )
    return found


def equation_of(model: CaptioningRNN, name: str) -> str:
    """The equation of a gate or state in the source of its cell, with its tag; "" if there is none.

    Args: name, as in ``cell.gates``; its last word is the letter that the equation has on its left side.
    """
    letter = name.split()[-1]
    source = inspect.getsource(sys.modules[type(model.cell).__module__])
    for comment in re.findall(r"^ *# ([^=\n]+ = .*?\([A-Z]+-\d+\))$", source, re.MULTILINE):
        left = re.split(r"\W+", comment.split("=")[0])
        if letter in left or f"{letter}_t" in left:
            return re.sub(r" {2,}", "   ", comment)
    return ""


# ---------------------------------------------------------------------------- the captioner in the browser


def live_data(captioner: ImageCaptioner) -> dict | None:
    """A captioner of the scenes with all its weights, for explained.js; None if the page can't run it."""
    model = captioner.model
    size = sum(p.numel() for p in model.parameters())
    scenes = all(word in model.word_to_idx for word in (*COLOURS, *SHAPES, *BACKGROUNDS))
    if not scenes or size > LIVE_LIMIT or model.cell_type not in LIVE_CELLS or captioner.stored_size != SIDE:
        return None
    if model.image_input != "h0" or not isinstance(model.image_norm, nn.Identity) or model.image_encoder.image_size:
        return None
    program = _program(model.image_encoder.cnn)
    if program is None:
        return None
    tensors: list[Tensor] = []
    for step in program:
        for name in ("weight", "bias"):
            if name in step:
                tensors.append(step[name])
                step[name] = len(tensors) - 1
    named = {}
    for name, tensor in {
        "mean": model.image_encoder.mean.flatten(),
        "std": model.image_encoder.std.flatten(),
        "featureMean": model.feature_mean.flatten(),
        "featureStd": model.feature_std.flatten(),
        "imageW": model.feature_projection.W,
        "imageB": model.feature_projection.b,
        "words": model.word_embedding.W_embed,
        "scoreW": model.vocabulary_projection.W,
        "scoreB": model.vocabulary_projection.b,
        **{name: parameter for name, parameter in model.cell.named_parameters()},
    }.items():
        tensors.append(tensor)
        named[name] = len(tensors) - 1
    gates = gate_names(model)
    flat = torch.cat([tensor.detach().float().cpu().contiguous().flatten() for tensor in tensors])
    return {
        "cell": model.cell_type,
        "program": program,
        "named": named,
        "shapes": [list(tensor.shape) for tensor in tensors],
        "weights": base64.b64encode(flat.numpy().astype("<f4").tobytes()).decode(),
        "vocabulary": model.idx_to_word,
        "end": END,
        "gates": gates,
        "equations": {name: equation_of(model, name) for name in gates},
        "meanings": {name: MEANINGS.get(name, "") for name in gates},
        "usesGrid": model.cell.uses_grid,
        "side": SIDE,
        "colours": COLOURS,
        "backgrounds": BACKGROUNDS,
        "shapesOfObjects": SHAPES,
        "sizes": SIZES,
    }


def _program(cnn) -> list[dict] | None:
    """The CNN as a list of steps, each with its inputs by number; BatchNorm goes into the convolution before it. None
    if it has a layer that explained.js does not know."""
    try:
        graph = fx.symbolic_trace(cnn)
    except Exception:  # noqa: BLE001, whatever can't be traced can't be run in the browser
        return None
    modules, steps, place = dict(graph.named_modules()), list[dict](), dict[fx.Node, int]()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            place[node] = -1
            continue
        if node.op == "output":
            result = node.args[0]
            result = next(iter(result.values())) if isinstance(result, dict) else result
            return steps if place[result] == len(steps) - 1 else None
        inputs = [place[arg] for arg in node.args if isinstance(arg, fx.Node)]
        step = _step(modules.get(node.target) if node.op == "call_module" else node.target, inputs, steps)
        if step is None:
            return None
        if step["kind"] != "same":
            steps.append(step)
        place[node] = inputs[0] if step["kind"] == "same" else len(steps) - 1
    return None


def _step(layer, inputs, steps):
    if isinstance(layer, nn.Conv2d) and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
        step = {"kind": "conv", "inputs": inputs, "stride": layer.stride[0], "padding": layer.padding[0]}
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        return step | {"groups": layer.groups, "weight": layer.weight.detach(), "bias": bias.detach()}
    if isinstance(layer, nn.BatchNorm2d) and steps and steps[-1]["kind"] == "conv" and inputs == [len(steps) - 1]:
        assert layer.running_mean is not None and layer.running_var is not None
        scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
        before = steps[-1]
        before["bias"] = ((before["bias"] - layer.running_mean) * scale + layer.bias).detach()
        before["weight"] = (before["weight"] * scale.view(-1, 1, 1, 1)).detach()
        return {"kind": "same"}
    if isinstance(layer, nn.Identity | nn.Dropout):
        return {"kind": "same"}
    kinds = {nn.Hardswish: "hardswish", nn.ReLU: "relu", nn.Hardsigmoid: "hardsigmoid"}
    for known, kind in kinds.items():
        if isinstance(layer, known):
            return {"kind": kind, "inputs": inputs}
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return {"kind": "pool", "inputs": inputs}
    if layer in (operator.add, torch.add, operator.iadd) and len(inputs) == 2:
        return {"kind": "add", "inputs": inputs}
    if layer in (operator.mul, torch.mul) and len(inputs) == 2:
        return {"kind": "mul", "inputs": inputs}
    return None
