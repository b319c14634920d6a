"""A second, plain version of the cells, for autograd. It can make the known mistakes: the checker compares the results
of a learner's functions with the results of these.

One trick is enough for all mistakes of a backward pass: :func:`via` has the value of one expression and the gradient of
another, so that autograd computes what the learner's wrong line would compute. Shapes and names are those of
``cells``; ``wrong`` holds the names of the mistakes to make: none, one or several.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .mistakes import GATES, ORDERS


def pick(wrong, choices, right):
    """The choice of the first mistake that is in ``wrong``, or the right value."""
    return next((choice for name, choice in choices.items() if name in wrong), right)


def via(value, route):
    """A tensor with the numbers of ``value`` and the gradient of ``route``."""
    return value.detach() + route - route.detach()


def slope(value, a, derivative):
    """``value``, as a function of ``a`` with this derivative."""
    return via(value, a * derivative.detach())


def total(pairs, b, wrong, after=None):
    """a = the sum of u @ W over the pairs (name, u, W), + b; after, the state that a wrong dWh uses."""
    a = (0 if "bias" in wrong else 1) * b.expand(len(pairs[0][1]), -1)
    for name, u, W in pairs:
        if "Wh transposed" in wrong and name == "h" and W.shape[0] == W.shape[1]:
            W = W.T
        product = u @ W
        if "dh: Wh not transposed" in wrong and name == "h" and W.shape[0] == W.shape[1]:
            product = via(product, u @ W.T.detach() + u.detach() @ W)
        if after is not None and name == "h":
            product = via(product, u @ W.detach() + after.detach() @ W)
        a = a if name in wrong else a + product
    return a


def gate_parts(a, gates, wrong):
    """Split a into its gates: gate -> (N, H), in the order that the mistakes choose."""
    gates = gates.lower()
    orders = {name: order for name, (order, right) in ORDERS.items() if right == gates}
    order = pick(wrong, {f"da {name}": order for name, order in orders.items()}, None)
    if order:
        parts = dict(zip(gates, a.chunk(len(gates), 1)))
        a = via(a, torch.cat([parts[gate] for gate in order], 1))
    return dict(zip(pick(wrong, orders, gates), a.chunk(len(gates), 1)))


def sigmoid_gate(gate, a, raw, wrong):
    """The value of a gate with a sigmoid; raw: without it."""
    y = a if raw else torch.sigmoid(a)
    if "sigmoid' forgotten" in wrong or f"{gate}' forgotten" in wrong:
        y = slope(y, a, torch.ones_like(y))
    half = "sigmoid' half" in wrong or f"{gate}' half" in wrong
    return slope(y, a, y) if half else y


def rnn_step(x, h, Wx, Wh, b, wrong=()):
    after = rnn_step(x, h, Wx, Wh, b)[0] if "dWh of next" in wrong else None
    a = total([("x", x, Wx), ("h", h, Wh)], b, wrong, after)
    y = torch.tanh(a)
    y = pick(wrong, {"no tanh": a, "sigmoid for tanh": torch.sigmoid(a)}, y)
    derivatives = {"tanh' forgotten": torch.ones_like(a), "tanh' twice": 1 - torch.tanh(y) ** 2}
    derivatives |= {"tanh' of a": 1 - a**2, "tanh' no square": 1 - y, "tanh' of before": 1 - h**2}
    derivative = pick(wrong, derivatives, None)
    return (y if derivative is None else slope(y, a, derivative),)


def lstm_step(x, h, c, Wx, Wh, b, attn=None, Wattn=None, wrong=()):
    pairs = [("x", x, Wx), ("h", h, Wh)]
    if attn is not None:
        weights = (Wattn, Wh) if "weights swapped" in wrong else (Wh, Wattn)
        pairs[1:] = [("h", h, weights[0]), ("attn", attn, weights[1])]
    after = lstm_step(x, h, c, Wx, Wh, b, attn, Wattn)[0] if "dWh of next" in wrong else None
    a = total(pairs, b, wrong, after)
    parts = gate_parts(a, GATES["lstm"], wrong)
    i, f, o = (sigmoid_gate(gate, parts[gate], "gates raw" in wrong, wrong) for gate in "ifo")
    g = pick(wrong, {"g sigmoid": torch.sigmoid, "g raw": lambda a: a}, torch.tanh)(parts["g"])
    if "g' as sigmoid" in wrong:
        g = slope(g, parts["g"], g * (1 - g))
    if "g' forgotten" in wrong:
        g = slope(g, parts["g"], torch.ones_like(g))
    if "g' no square" in wrong:
        g = slope(g, parts["g"], 1 - g)
    kept = pick(wrong, {"no f": c, "no c": 0 * c}, f * c)
    next_c = kept + (g if "no i" in wrong else i * g)
    if "df of next c" in wrong:
        next_c = via(next_c, f * next_c.detach() + f.detach() * c + i * g)
    if "dg by f" in wrong:
        next_c = via(next_c, f * c + i * g.detach() + f.detach() * g)
    if "dprev_c by o" in wrong:
        next_c = via(next_c, f * c.detach() + o.detach() * c + i * g)
    if "dprev_c without f" in wrong:
        next_c = via(next_c, f * c.detach() + c + i * g)
    inner = next_c.detach() if "dh into c" in wrong else next_c
    tanh_c = inner if "tanh c" in wrong else torch.tanh(inner)
    if "tanh(c)' forgotten" in wrong:
        tanh_c = slope(tanh_c, inner, torch.ones_like(inner))
    if "tanh(c)' of c" in wrong:
        tanh_c = slope(tanh_c, inner, 1 - inner**2)
    next_h = tanh_c if "no o" in wrong else o * tanh_c
    return (next_c, next_h) if "results swapped" in wrong else (next_h, next_c)


def gru_step(x, h, Wx, Wh, b, wrong=()):
    after = gru_step(x, h, Wx, Wh, b)[0] if "dWh of next" in wrong else None
    parts = gate_parts(total([("x", x, Wx)], b, wrong), GATES["gru"], wrong)  # p
    u = gate_parts(total([("h", h, Wh)], torch.zeros_like(b), wrong, after), GATES["gru"], wrong)
    r, z = (sigmoid_gate(gate, parts[gate] + u[gate], "rz raw" in wrong, wrong) for gate in "rz")
    u_n, asked = u["n"], r.detach() if "r path" in wrong else r
    if "r before" in wrong:
        reset = (r * h) @ Wh.chunk(3, 1)[2]
    elif "du_n without r" in wrong:
        reset = via(r * u_n, asked * u_n.detach() + u_n)
    elif "dWh by da" in wrong:
        W_n = Wh.chunk(3, 1)[2]
        reset = via(r * u_n, asked * (h @ W_n.detach()) + h.detach() @ W_n)
    else:
        reset = asked * u_n
    a = pick(wrong, {"no r": parts["n"] + u_n, "r on p": r * (parts["n"] + u_n)}, parts["n"] + reset)
    n = pick(wrong, {"n sigmoid": torch.sigmoid, "n raw": lambda a: a}, torch.tanh)(a)
    derivatives = {"n' forgotten": torch.ones_like(n), "n' no square": 1 - n}
    derivative = pick(wrong, derivatives, None)
    n = n if derivative is None else slope(n, a, derivative)
    new, kept = (
        pick(wrong, {"no z n": n, "z swapped": z * n}, (1 - z) * n),
        pick(wrong, {"no z h": 0 * h, "z swapped": (1 - z) * h}, z * h),
    )
    next_h = new + kept
    fixed = {name: value.detach() for name, value in (("h", h), ("n", n), ("z", z))}
    routes = {
        "dh direct": (1 - z) * n + z * fixed["h"],
        "dh direct by 1 - z": (1 - z) * n + z * fixed["h"] + (1 - fixed["z"]) * h,
        "dz sign": (1 - fixed["z"]) * n + z * (fixed["n"] - fixed["h"]) + fixed["z"] * h,
        "dz half": (1 - fixed["z"]) * n + z * h,
        "dn by z": z * (fixed["h"] - fixed["n"]) + fixed["z"] * n + fixed["z"] * h,
    }
    route = pick(wrong, routes, None)
    return (next_h if route is None else via(next_h, route),)


def attend(prev_h, A, wrong=()):
    """attn (N, H) and its weights (N, grid_h, grid_w)."""
    N, H, grid_h, grid_w = A.shape
    G = grid_h * grid_w
    cells = A.reshape(N, G, H) if "grid reshaped" in wrong else A.flatten(2).transpose(1, 2)  # (N, G, H)
    asked, averaged = (cells.detach() if w in wrong else cells for w in ("dA scores", "dA weights"))
    query = prev_h.detach() if "query" in wrong else prev_h
    scales = {"no scale": 1, "scale H": H, "scale G": G**0.5, "scale up": H**-0.5}
    raw = (asked @ query.unsqueeze(2)).squeeze(2)  # (N, G)
    scores = raw / pick(wrong, scales, H**0.5)
    if "scale forgotten" in wrong:
        scores = via(scores, raw)
    weights = torch.softmax(scores, 0 if "softmax axis" in wrong else 1)
    if "softmax' half" in wrong:
        weights = slope(weights, scores, weights)
    used = torch.full_like(weights, 1 / G) if "uniform" in wrong else weights
    return (used.unsqueeze(1) @ averaged).squeeze(1), weights.view(N, grid_h, grid_w)


def attention_step(x, h, c, attn, Wx, Wh, Wattn, b, wrong=()):
    return lstm_step(x, h, c, Wx, Wh, b, attn, Wattn, wrong=wrong)


# ---------------------------------------------------------------------------- what the checker calls


class PlainCell(NamedTuple):
    """What the checker needs to know of a cell. A size is a letter; a number before it is a factor."""

    weights: str
    image: str  # the argument that is the image, and its size
    state: tuple[str, ...]  # the names of a state's parts
    inputs: str  # further arguments of a step
    start: Callable  # (image, wrong) -> state
    step: Callable  # the step function: (x, *state, *inputs, *weights, wrong=...) -> state
    look: Callable = lambda state, image, first, wrong: ()  # (state, image, first state, wrong) -> inputs


def _attention_start(A, wrong):
    mean = (A.detach() if "dA start" in wrong else A).mean((2, 3))
    return tuple(0 * mean if name in wrong else mean for name in ("h0 zero", "c0 zero"))


PLAIN_CELLS = {
    "rnn": PlainCell("Wx D,H  Wh H,H  b H", "h0 N,H", ("h",), "", lambda h0, wrong: (h0,), rnn_step),
    "lstm": PlainCell(
        "Wx D,4H  Wh H,4H  b 4H",
        "h0 N,H",
        ("h", "c"),
        "",
        lambda h0, wrong: (h0, h0 if "c0 is h0" in wrong else torch.zeros_like(h0)),
        lstm_step,
    ),
    "gru": PlainCell("Wx D,3H  Wh H,3H  b 3H", "h0 N,H", ("h",), "", lambda h0, wrong: (h0,), gru_step),
    "attention": PlainCell(
        "Wx D,4H  Wh H,4H  Wattn H,4H  b 4H",
        "A N,H,grid_h,grid_w",
        ("h", "c"),
        "attn N,H",
        _attention_start,
        attention_step,
        lambda state, A, first, wrong: attend(first[0] if "attend once" in wrong else state[0], A, wrong)[:1],
    ),
}

# name of a forward -> its arguments with their sizes, its results
FORWARDS: dict[str, tuple[str, str]] = {}
for _prefix, _cell in PLAIN_CELLS.items():
    if _cell.inputs:
        FORWARDS["dot_product_attention"] = ("prev_h N,H  A N,H,grid_h,grid_w", "attn attn_weights")
    _state = "  ".join(f"prev_{name} N,H" for name in _cell.state)
    _arguments = [part for part in ("x N,D", _state, _cell.inputs, _cell.weights) if part]
    FORWARDS[f"{_prefix}_step_forward"] = ("  ".join(_arguments), " ".join(f"next_{name}" for name in _cell.state))
    FORWARDS[f"{_prefix}_forward"] = (f"x N,T,D  {_cell.image}  {_cell.weights}", "h")
FORWARDS["temporal_softmax_loss"] = ("x N,T,V  y N,T", "loss")

ORDER: list[str] = []  # of the checks: a forward before its backward, a step before its sequence
for _forward in FORWARDS:
    ORDER += [_forward, _forward.replace("forward", "backward")] if "forward" in _forward else [_forward]


def sequence(cell: PlainCell, x: Tensor, image: Tensor, *weights: Tensor, wrong: tuple[str, ...] = ()) -> Tensor:
    """Run a cell over x (N, T, D) -> h (N, T, H)."""
    first = state = cell.start(image, wrong)
    out: list[Tensor] = []
    times = range(x.shape[1])
    for t in reversed(times) if "reversed" in wrong else times:
        used = [w.detach() if "dW overwritten" in wrong and t else w for w in weights]
        state = tuple(begun if f"{name} not carried" in wrong else now for name, now, begun in zip("hc", state, first))
        state = tuple(s.detach() if f"d{name} not carried" in wrong and t else s for name, s in zip("hc", state))
        inputs = cell.look(state, image, first, wrong)
        state = cell.step(x[:, t], *state, *inputs, *used, wrong=wrong)
        out.append(state[0])
    if "first skipped" in wrong:
        out = [first[0], *out[:-1]]
    if "last skipped" in wrong:
        out = [*out[:-1], torch.zeros_like(first[0])]
    if "reversed" in wrong:
        out.reverse()
    return torch.stack(out, 1)


def softmax_loss(x, y, ignore_index=None, wrong=()):
    if "always ignored" in wrong:
        ignore_index = 0
    if "null counted" in wrong:
        ignore_index = None
    log_probs = torch.log_softmax(x, 1 if "loss axis" in wrong else 2)
    values = log_probs.exp() if "probability" in wrong else log_probs
    counted = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    loss = -(values.gather(2, y.unsqueeze(2)).squeeze(2) * counted).sum()
    divisors = {"mean over words": counted.sum(), "mean over all": y.numel(), "sum": 1, "negative": -len(y)}
    return loss / pick(wrong, divisors, len(y))


def forward(name: str, arguments: dict[str, Tensor], wrong: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
    """The results of a ``*_forward``, of the attention or the loss, without the cache."""
    values = tuple(arguments.values())
    if name == "temporal_softmax_loss":
        return (softmax_loss(**arguments, wrong=wrong),)
    if name == "dot_product_attention":
        return attend(**arguments, wrong=wrong)
    cell = PLAIN_CELLS[name.split("_")[0]]
    return cell.step(*values, wrong=wrong) if "step" in name else (sequence(cell, *values, wrong=wrong),)


def backward(
    name: str, arguments: dict[str, Tensor], upstream: tuple[Tensor, ...], wrong: tuple[str, ...] = ()
) -> tuple[Tensor, ...]:
    """The gradients of the arguments of the forward called ``name``, given the upstream gradients."""
    skipped = "first skipped" in wrong or "last skipped" in wrong
    if skipped and "step" not in name and "x" in arguments:
        return _with_a_step_skipped(name, arguments, upstream, wrong)
    if "dnext_c ignored" in wrong and len(upstream) > 1:
        upstream = (upstream[0], torch.zeros_like(upstream[1]))
    inputs = {key: value.detach().requires_grad_() for key, value in arguments.items()}
    nothing = 0 * sum(value.sum() for value in inputs.values())  # if a mistake cuts a path, the gradient is zero
    outputs = [result + nothing for result in forward(name, inputs, wrong)[: len(upstream)]]
    gradients = dict(zip(inputs, torch.autograd.grad(outputs, list(inputs.values()), upstream)))
    for key in gradients:
        averaged = ("db mean" in wrong and key == "b") or ("dW mean" in wrong and key.startswith("W"))
        if averaged:
            gradients[key] = gradients[key] / len(upstream[0])
    return tuple(gradients.values())


def _with_a_step_skipped(name, arguments, upstream, wrong):
    """A loop over time that leaves out the first or the last step: its dx stays zero."""
    (dh,), x = upstream, arguments["x"]
    others = tuple(name for name in wrong if "skipped" not in name)
    kept = slice(1, None) if "first skipped" in wrong else slice(None, -1)
    start = dict(arguments)
    if "first skipped" in wrong and "h0" in arguments and len(PLAIN_CELLS[name.split("_")[0]].state) == 1:
        start["h0"] = forward(name, arguments, others)[0][:, 0]
    elif "first skipped" in wrong:
        return backward(name, arguments, upstream, others)  # the cell state then depends on the learner's cache
    found = backward(name, start | {"x": x[:, kept]}, (dh[:, kept],), others)
    dx = torch.zeros_like(x)
    dx[:, kept] = found[0]
    return (dx, *found[1:])
