"""A second, plain version of the cells, for autograd. It can make the known mistakes: the checker compares the results
of a learner's functions with the results of these.

One trick is enough for all mistakes of a backward pass: :func:`via` has the value of one expression and the gradient of
another, so that autograd computes what the learner's wrong line would compute. Shapes and names are those of
``cells``; ``wrong`` holds the names of the mistakes to make: none, one or several. ``values``, if it is given, gets the
values of a step that a learner may keep in a cache.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .mistakes import GATES, ORDERS

Wrong = Collection[str]
Values = dict[str, Tensor] | None


def pick(wrong: Wrong, choices: Mapping[str, Any], right: Any) -> Any:
    """The choice of the first mistake that is in ``wrong``, or the right value."""
    return next((choice for name, choice in choices.items() if name in wrong), right)


def via(value: Tensor, route: Tensor) -> Tensor:
    """A tensor with the numbers of ``value`` and the gradient of ``route``."""
    return value.detach() + route - route.detach()


def slope(value: Tensor, a: Tensor, derivative: Tensor) -> Tensor:
    """``value``, as a function of ``a`` with this derivative."""
    return via(value, a * derivative.detach())


def keep(values: Values, **found: Tensor) -> None:
    """Add what was found to the values."""
    if values is not None:
        values.update({name: value.detach() for name, value in found.items()})


def total(
    pairs: list[tuple[str, Tensor, Tensor]], b: Tensor, wrong: Wrong, after: Tensor | None = None, values: Values = None
) -> Tensor:
    """a = the sum of u @ W over the pairs (name, u, W), + b; after, the state that a wrong dWh uses."""
    a = pick(wrong, {"bias": 0, "bias outside": 0, "bias twice": 2, "b subtracted": -1}, 1) * b.expand(
        len(pairs[0][1]), -1
    )
    for name, u, W in pairs:
        if "Wh transposed" in wrong and name == "h" and W.shape[0] == W.shape[1]:
            W = W.T
        product = u @ W
        product = -product if f"{name} subtracted" in wrong else product
        keep(values, **{f"{name} W": product})
        if "dh: Wh not transposed" in wrong and name == "h" and W.shape[0] == W.shape[1]:
            product = via(product, u @ W.T.detach() + u.detach() @ W)
        if "dx: Wx not transposed" in wrong and name == "x" and W.shape[0] == W.shape[1]:
            product = via(product, u @ W.T.detach() + u.detach() @ W)
        if after is not None and name == "h":
            product = via(product, u @ W.detach() + after.detach() @ W)
        a = a if name in wrong else a + product
    keep(values, a=a)
    return a


def gate_parts(a: Tensor, gates: str, wrong: Wrong) -> dict[str, Tensor]:
    """Split a into its gates: gate -> (N, H), in the order that the mistakes choose."""
    gates = gates.lower()
    if "interleaved" in wrong:
        return dict(zip(gates, a.unflatten(1, (-1, len(gates))).unbind(2)))
    orders = {name: order for name, (order, right) in ORDERS.items() if right == gates}
    order = pick(wrong, {f"da {name}": order for name, order in orders.items()}, None)
    if order:
        parts = dict(zip(gates, a.chunk(len(gates), 1)))
        a = via(a, torch.cat([parts[gate] for gate in order], 1))
    return dict(zip(pick(wrong, orders, gates), a.chunk(len(gates), 1)))


def sigmoid_gate(gate: str, a: Tensor, raw: bool, wrong: Wrong) -> Tensor:
    """The value of a gate with a sigmoid; raw: without it."""
    y = a if raw or f"{gate} raw" in wrong else torch.sigmoid(a)
    y = torch.tanh(a) if f"{gate} tanh" in wrong else y
    if "sigmoid' forgotten" in wrong or f"{gate}' forgotten" in wrong:
        y = slope(y, a, torch.ones_like(y))
    if f"d{gate} zero" in wrong:
        return y.detach() + 0 * a
    half = "sigmoid' half" in wrong or f"{gate}' half" in wrong
    other = {f"{gate}' as tanh": 1 - y**2, "sigmoid' of a": a * (1 - a), "sigmoid' twice": _dsigmoid(torch.sigmoid(y))}
    derivative = pick(wrong, other, y if half else None)
    return y if derivative is None else slope(y, a, derivative)


def _dsigmoid(y):
    return y * (1 - y)


def rnn_step(
    x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, wrong: Wrong = (), values: Values = None
) -> tuple[Tensor, ...]:
    after = rnn_step(x, h, Wx, Wh, b)[0] if "dWh of next" in wrong else None
    a = total([("x", x, Wx), ("h", h, Wh)], b, wrong, after, values)
    y = torch.tanh(a)
    activations = {"no tanh": a, "sigmoid for tanh": torch.sigmoid(a), "relu": torch.relu(a), "bias outside": y + b}
    activations |= {"tanh of each": torch.tanh(x @ Wx) + torch.tanh(h @ Wh) + b}
    activations |= {"tanh of each, b with h": torch.tanh(x @ Wx) + torch.tanh(h @ Wh + b)}
    activations |= {"tanh of each, b with x": torch.tanh(x @ Wx + b) + torch.tanh(h @ Wh)}
    activations |= {"h after tanh": torch.tanh(x @ Wx + b) + h @ Wh, "tanh twice": torch.tanh(y)}
    y = pick(wrong, activations, y)
    derivatives = {"tanh' forgotten": torch.ones_like(a), "tanh' twice": 1 - torch.tanh(y) ** 2}
    derivatives |= {"tanh' of a": 1 - a**2, "tanh' no square": 1 - y, "tanh' of before": 1 - h**2}
    derivatives |= {"tanh' as sigmoid": y * (1 - y), "tanh' (1 - h)^2": (1 - y) ** 2, "tanh' plus": 1 + y**2}
    derivatives |= {"tanh' negative": y**2 - 1, "tanh' h^2": y**2}
    derivative = pick(wrong, derivatives, None)
    keep(values, h=y)
    return (y if derivative is None else slope(y, a, derivative),)


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    attn: Tensor | None = None,
    Wattn: Tensor | None = None,
    wrong: Wrong = (),
    values: Values = None,
) -> tuple[Tensor, ...]:
    pairs = [("x", x, Wx), ("h", h, Wh)]
    if attn is not None and Wattn is not None:
        choices = {"weights swapped": (Wattn, Wh), "Wh for attn": (Wh, Wh), "Wattn for h": (Wattn, Wattn)}
        weights = pick(wrong, choices, (Wh, Wattn))
        pairs[1:] = [("h", h, weights[0]), ("attn", attn, weights[1])]
    after = lstm_step(x, h, c, Wx, Wh, b, attn, Wattn)[0] if "dWh of next" in wrong else None
    a = total(pairs, b, wrong, after, values)
    parts = gate_parts(a, GATES["lstm"], wrong)
    if "forget bias added" in wrong:
        parts["f"] = parts["f"] + 1
    i, f, o = (sigmoid_gate(gate, parts[gate], "gates raw" in wrong, wrong) for gate in "ifo")
    g = pick(wrong, {"g sigmoid": torch.sigmoid, "g raw": lambda a: a, "g relu": torch.relu}, torch.tanh)(parts["g"])
    slopes = {"g' as sigmoid": g * (1 - g), "g' forgotten": torch.ones_like(g), "g' no square": 1 - g}
    slopes |= {"g' of a": 1 - parts["g"] ** 2, "g' plus": 1 + g**2, "g' twice": 1 - torch.tanh(g) ** 2}
    derivative = pick(wrong, slopes, None)
    g = g if derivative is None else slope(g, parts["g"], derivative)
    kept = pick(wrong, {"no f": c, "no c": 0 * c, "f is 1 - i": (1 - i) * c}, f * c)
    next_c = kept + pick(wrong, {"no i": g, "i twice": i * i * g, "i is 1 - f": (1 - f) * g}, i * g)
    if "tanh in c" in wrong:
        next_c = torch.tanh(next_c)
    fixed = {name: value.detach() for name, value in zip("ifog", (i, f, o, g))}
    routes = {
        "df of next c": f * next_c.detach() + fixed["f"] * c + i * g,
        "dg by f": f * c + i * fixed["g"] + fixed["f"] * g,
        "dg by o": f * c + i * fixed["g"] + fixed["o"] * g,
        "di by c": f * c + i * c.detach() + fixed["i"] * g,
        "df by g": f * fixed["g"] + fixed["f"] * c + i * g,
        "dprev_c by o": f * c.detach() + fixed["o"] * c + i * g,
        "dprev_c by i": f * c.detach() + fixed["i"] * c + i * g,
        "dprev_c without f": f * c.detach() + c + i * g,
        "dprev_c zero": f * c.detach() + i * g,
    }
    route = pick(wrong, routes, None)
    next_c = next_c if route is None else via(next_c, route)
    inner = next_c.detach() if "dh into c" in wrong else next_c
    tanh_c = pick(wrong, {"tanh c": lambda c: c, "sigmoid c": torch.sigmoid}, torch.tanh)(inner)
    tanh_c = torch.tanh(c) if "h of prev c" in wrong else tanh_c
    slopes = {"tanh(c)' forgotten": torch.ones_like(inner), "tanh(c)' of c": 1 - inner**2}
    slopes |= {"tanh(c)' no square": 1 - tanh_c, "tanh(c)' twice": 1 - torch.tanh(tanh_c) ** 2}
    slopes |= {"tanh(c)' of h": 1 - (o * tanh_c) ** 2, "tanh(c)' of prev c": 1 - torch.tanh(c) ** 2}
    derivative = pick(wrong, slopes, None)
    tanh_c = tanh_c if derivative is None else slope(tanh_c, inner, derivative)
    next_h = tanh_c if "no o" in wrong else o * tanh_c
    routes = {"dc without o": o * tanh_c.detach() + tanh_c, "do by c": o * inner.detach() + fixed["o"] * tanh_c}
    routes |= {
        "do by h": o * next_h.detach() + fixed["o"] * tanh_c,
        "dc by f": o * tanh_c.detach() + f.detach() * tanh_c,
    }
    routes |= {"dc by dh": o * tanh_c.detach() + inner}
    route = pick(wrong, routes, None)
    next_h = next_h if route is None else via(next_h, route)
    next_h = next_c if "c for h" in wrong else next_h
    keep(values, i=i, f=f, o=o, g=g, c=next_c, tanh_c=tanh_c, h=next_h)
    keep(values, **{f"a_{gate}": part for gate, part in parts.items()})
    return (next_c, next_h) if "results swapped" in wrong else (next_h, next_c)


def gru_step(
    x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, wrong: Wrong = (), values: Values = None
) -> tuple[Tensor, ...]:
    after = gru_step(x, h, Wx, Wh, b)[0] if "dWh of next" in wrong else None
    p = total([("x", x, Wx)], b, wrong, values=values)
    u_all = total([("h", h, Wh)], torch.zeros_like(b), wrong, after)
    parts, u = gate_parts(p, GATES["gru"], wrong), gate_parts(u_all, GATES["gru"], wrong)
    r, z = (sigmoid_gate(gate, parts[gate] + u[gate], "rz raw" in wrong, wrong) for gate in "rz")
    u_n, asked = u["n"], r.detach() if "r path" in wrong else r
    if "r twice" in wrong:
        reset = r * ((r * h) @ Wh.chunk(3, 1)[2])
    elif "r before" in wrong:
        reset = (r * h) @ Wh.chunk(3, 1)[2]
    elif "du_n without r" in wrong:
        reset = via(r * u_n, asked * u_n.detach() + u_n)
    elif "dWh by da" in wrong:
        W_n = Wh.chunk(3, 1)[2]
        reset = via(r * u_n, asked * (h @ W_n.detach()) + h.detach() @ W_n)
    elif "dh by da" in wrong:
        W_n = Wh.chunk(3, 1)[2]
        reset = via(r * u_n, asked * u_n.detach() + h @ W_n.detach() + r.detach() * (h.detach() @ W_n))
    elif "dr by h" in wrong:
        reset = via(r * u_n, r * h.detach() + r.detach() * u_n)
    else:
        reset = asked * u_n
    choices = {"no r": parts["n"] + u_n, "r on p": r * (parts["n"] + u_n), "z for r": parts["n"] + z * u_n}
    a = pick(wrong, choices | {"no u_n": parts["n"]}, parts["n"] + reset)
    n = pick(wrong, {"n sigmoid": torch.sigmoid, "n raw": lambda a: a, "n relu": torch.relu}, torch.tanh)(a)
    derivatives = {"n' forgotten": torch.ones_like(n), "n' no square": 1 - n, "n' as sigmoid": n * (1 - n)}
    derivative = pick(wrong, derivatives, None)
    n = n if derivative is None else slope(n, a, derivative)
    new, kept = (
        pick(wrong, {"no z n": n, "z swapped": z * n, "r for z": (1 - r) * n}, (1 - z) * n),
        pick(wrong, {"no z h": 0 * h, "z swapped": (1 - z) * h, "h kept whole": h, "r for z": r * h}, z * h),
    )
    next_h = new + kept
    fixed = {name: value.detach() for name, value in (("h", h), ("n", n), ("z", z))}
    routes = {
        "dh direct": (1 - z) * n + z * fixed["h"],
        "dh direct by 1 - z": (1 - z) * n + z * fixed["h"] + (1 - fixed["z"]) * h,
        "dh direct whole": (1 - z) * n + z * fixed["h"] + h,
        "dz sign": (1 - fixed["z"]) * n + z * (fixed["n"] - fixed["h"]) + fixed["z"] * h,
        "dz half": (1 - fixed["z"]) * n + z * h,
        "dz by n alone": (1 - z) * n + fixed["z"] * h,
        "dn by z": z * (fixed["h"] - fixed["n"]) + fixed["z"] * n + fixed["z"] * h,
        "dn whole": z * (fixed["h"] - fixed["n"]) + n + fixed["z"] * h,
    }
    route = pick(wrong, routes, None)
    keep(values, r=r, z=z, n=n, u=u_all, u_n=u_n, a_n=a, h=next_h, reset=r * u_n, reset_h=r * h)
    keep(values, **{f"p_{gate}": part for gate, part in parts.items()})
    keep(values, **{f"u_{gate}": part for gate, part in u.items()})
    return (next_h if route is None else via(next_h, route),)


def attend(prev_h: Tensor, A: Tensor, wrong: Wrong = ()) -> tuple[Tensor, Tensor]:
    """attn (N, H) and its weights (N, grid_h, grid_w)."""
    N, H, grid_h, grid_w = A.shape
    G = grid_h * grid_w
    cells = A.reshape(N, G, H) if "grid reshaped" in wrong else A.flatten(2).transpose(1, 2)  # (N, G, H)
    cells = A.transpose(2, 3).flatten(2).transpose(1, 2) if "grid turned" in wrong else cells
    asked, averaged = (cells.detach() if w in wrong else cells for w in ("dA scores", "dA weights"))
    query = prev_h.detach() if "query" in wrong else prev_h
    scales = {"no scale": 1, "scale H": H, "scale G": G**0.5, "scale up": H**-0.5, "scale N": N**0.5}
    scales |= {"scale after": 1, "tanh scores": 1}
    raw = (asked @ query.unsqueeze(2)).squeeze(2)  # (N, G)
    scores = raw / pick(wrong, scales, H**0.5)
    scores = torch.tanh(scores) if "tanh scores" in wrong else scores
    if "scale forgotten" in wrong:
        scores = via(scores, raw)
    if "scores not softmaxed" in wrong:
        weights = scores
    elif "softmax over one" in wrong:
        weights = torch.ones_like(scores)
    elif "softmax over all" in wrong:
        weights = torch.softmax(scores.flatten(), 0).view_as(scores)
    elif "softmax over rows" in wrong:
        weights = torch.softmax(scores.view(N, grid_h, grid_w), 2).flatten(1)
    elif "softmax over columns" in wrong:
        weights = torch.softmax(scores.view(N, grid_h, grid_w), 1).flatten(1)
    elif "normalised by the sum" in wrong:
        weights = scores / scores.sum(1, keepdim=True)
    elif "sigmoid for softmax" in wrong:
        weights = torch.sigmoid(scores)
    elif "exp alone" in wrong:
        weights = scores.exp()
    else:
        weights = torch.softmax(scores, 0 if "softmax axis" in wrong else 1)
    weights = weights / H**0.5 if "scale after" in wrong else weights
    weights = weights.max(1, keepdim=True)[0].eq(weights).to(weights) if "hard" in wrong else weights
    if "softmax' half" in wrong:
        weights = slope(weights, scores, weights)
    if "softmax' diagonal" in wrong:
        weights = slope(weights, scores, weights * (1 - weights))
    if "softmax' forgotten" in wrong:
        weights = slope(weights, scores, torch.ones_like(weights))
    averaged = A.reshape(N, G, H) if "grid reshaped in the sum" in wrong else averaged
    used = torch.full_like(weights, 1 / G) if "uniform" in wrong else weights
    attn = (used.unsqueeze(1) @ averaged).squeeze(1)
    attn = pick(wrong, {"mean for sum": attn / G, "sum over the batch": attn.sum(0).expand_as(attn)}, attn)
    shown = scores if "scores returned" in wrong else weights
    shown = shown.view(N, grid_h, grid_w)
    return attn, shown.transpose(1, 2) if "weights turned" in wrong and grid_h == grid_w else shown


def attention_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    attn: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    b: Tensor,
    wrong: Wrong = (),
    values: Values = None,
) -> tuple[Tensor, ...]:
    return lstm_step(x, h, c, Wx, Wh, b, attn, Wattn, wrong=wrong, values=values)


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
    gates: str = ""  # in their order, as in GATES


def _attention_start(A, wrong):
    A = A.detach() if "dA start" in wrong else A
    mean = A.mean((2, 3))
    mean = pick(wrong, {"h0 sum": A.sum((2, 3)), "h0 max": A.amax((2, 3)), "h0 first": A[:, :, 0, 0]}, mean)
    return tuple(0 * mean if name in wrong else mean for name in ("h0 zero", "c0 zero"))


def _attention_look(state, A, first, wrong):
    query = pick(wrong, {"attend once": first[0], "c asks": state[1]}, state[0])
    return attend(query, A, wrong)[:1]


PLAIN_CELLS = {
    "rnn": PlainCell("Wx D,H  Wh H,H  b H", "h0 N,H", ("h",), "", lambda h0, wrong: (h0,), rnn_step),
    "lstm": PlainCell(
        "Wx D,4H  Wh H,4H  b 4H",
        "h0 N,H",
        ("h", "c"),
        "",
        lambda h0, wrong: (h0, h0 if "c0 is h0" in wrong else torch.zeros_like(h0)),
        lstm_step,
        gates=GATES["lstm"],
    ),
    "gru": PlainCell(
        "Wx D,3H  Wh H,3H  b 3H", "h0 N,H", ("h",), "", lambda h0, wrong: (h0,), gru_step, gates=GATES["gru"]
    ),
    "attention": PlainCell(
        "Wx D,4H  Wh H,4H  Wattn H,4H  b 4H",
        "A N,H,grid_h,grid_w",
        ("h", "c"),
        "attn N,H",
        _attention_start,
        attention_step,
        _attention_look,
        gates=GATES["lstm"],
    ),
}


def _tanh(a, wrong=()):
    y = torch.tanh(a)
    slopes = {"tanh' forgotten": torch.ones_like(a), "tanh' twice": 1 - torch.tanh(y) ** 2, "tanh' no square": 1 - y}
    slopes |= {"tanh' of a": 1 - a**2, "tanh' as sigmoid": y * (1 - y), "tanh' plus": 1 + y**2}
    derivative = pick(wrong, slopes, None)
    return y if derivative is None else slope(y, a, derivative)


def _sigmoid(a, wrong=()):
    y = pick(wrong, {"sign of a": torch.sigmoid(-a), "tanh for sigmoid": torch.tanh(a)}, torch.sigmoid(a))
    slopes = {"sigmoid' forgotten": torch.ones_like(a), "sigmoid' of a": a * (1 - a), "sigmoid' half": y}
    slopes |= {"sigmoid' negative": -y * (1 - y)}
    slopes |= {"sigmoid' as tanh": 1 - y**2, "sigmoid' twice": _dsigmoid(torch.sigmoid(y))}
    derivative = pick(wrong, slopes, None)
    return y if derivative is None else slope(y, a, derivative)


def _softmax(a, wrong=()):
    y = torch.softmax(a, 0 if "softmax over the batch" in wrong else 1)
    y = torch.softmax(a.flatten(), 0).view_as(a) if "softmax over all" in wrong else y
    y = pick(wrong, {"exp alone": a.exp(), "sigmoid for softmax": torch.sigmoid(a)}, y)
    slopes = {"softmax' half": y, "softmax' diagonal": y * (1 - y), "softmax' forgotten": torch.ones_like(y)}
    derivative = pick(wrong, slopes, None)
    return y if derivative is None else slope(y, a, derivative)


def _affine(x, W, b, wrong=()):
    return total([("x", x, W)], b, wrong)


# the functions before the cells; each is a forward of a row of numbers
BASICS: dict[str, tuple[str, Callable]] = {
    "tanh_forward": ("a N,H", _tanh),
    "sigmoid_forward": ("a N,H", _sigmoid),
    "softmax_forward": ("a N,V", _softmax),
    "affine_forward": ("x N,D  W D,H  b H", _affine),
}

# name of a forward -> its arguments with their sizes, its results
FORWARDS: dict[str, tuple[str, str]] = {name: (arguments, "y") for name, (arguments, _) in BASICS.items()}
for _prefix, _cell in PLAIN_CELLS.items():
    if _cell.inputs:
        FORWARDS["dot_product_attention"] = ("prev_h N,H  A N,H,grid_h,grid_w", "attn attn_weights")
    _state = "  ".join(f"prev_{name} N,H" for name in _cell.state)
    _arguments = [part for part in ("x N,D", _state, _cell.inputs, _cell.weights) if part]
    FORWARDS[f"{_prefix}_step_forward"] = ("  ".join(_arguments), " ".join(f"next_{name}" for name in _cell.state))
    FORWARDS[f"{_prefix}_forward"] = (f"x N,T,D  {_cell.image}  {_cell.weights}", "h")
FORWARDS["temporal_softmax_loss"] = ("x N,T,V  y N,T", "loss")

SEQUENCES = {f"{prefix}_{way}" for prefix in PLAIN_CELLS for way in ("forward", "backward")}
ORDER: list[str] = []  # of the checks: a forward before its backward, a step before its sequence
for _forward in FORWARDS:
    ORDER += [_forward, _forward.replace("forward", "backward")] if "forward" in _forward else [_forward]


def softmax_loss(x: Tensor, y: Tensor, ignore_index: int | None = None, wrong: Wrong = ()) -> Tensor:
    N, T, _ = x.shape
    if "always ignored" in wrong:
        ignore_index = 0
    if "null counted" in wrong:
        ignore_index = None
    if "shifted" in wrong:
        x, y = x[:, :-1], y[:, 1:]
    counted = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    counted = ~counted if "mask inverted" in wrong else counted
    x = x.softmax(2) if "softmax twice" in wrong else x
    scores = x * counted.unsqueeze(2) if "scores masked" in wrong else x
    log_probs = torch.log_softmax(scores, 1 if "loss axis" in wrong else 2)
    log_probs = log_probs + math.log(x.shape[2]) if "mean of exp" in wrong else log_probs
    log_probs = log_probs - x.amax(2, keepdim=True) if "shift not undone" in wrong else log_probs
    values = log_probs.exp() if "probability" in wrong else log_probs
    values = values / math.log(2) if "log2" in wrong else values
    used = torch.ones_like(counted) if "scores masked" in wrong else counted
    picked = values.gather(2, y.unsqueeze(2)).squeeze(2)
    if "minus one forgotten" in wrong:
        picked = via(picked, picked - x.gather(2, y.unsqueeze(2)).squeeze(2))
    loss = -(picked * used).sum()
    divisors = {"mean over words": counted.sum(), "mean over all": y.numel(), "sum": 1}
    divisors |= {"mean and N": N * y.numel(), "by T": T, "by N squared": N * N, "words and N": N * counted.sum()}
    loss = loss / pick(wrong, divisors, N) * (-1 if "negative" in wrong else 1)
    return via(loss, loss * N) if "dx not averaged" in wrong else loss
