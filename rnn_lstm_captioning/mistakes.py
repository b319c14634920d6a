"""The cells once more, written plainly, with the mistakes that learners make: what `check` compares with.

One trick serves all the mistakes of a backward pass: :func:`via` has the value of one expression and the gradient
of another, so that autograd computes what the learner's wrong line would. Shapes and names are those of ``cells``;
``wrong`` holds the names of the mistakes that are made, none, one or several.
"""

from itertools import permutations

import torch

GATES = "ifog"
ORDERS = {f"order {''.join(order)}": order for order in permutations(GATES) if "".join(order) != GATES}

MISTAKES = {
    # the first that explains what is found is named: those of a backward pass, then those of the loop, then the rest
    # backward
    "tanh' forgotten": "the derivative of tanh is missing: da = dh * (1 - h^2)",
    "tanh' twice": "the derivative of tanh is taken of the wrong thing: it is 1 - h^2, h being tanh(a) already",
    "tanh' of a": "the derivative of tanh is taken of the wrong thing: 1 - a^2 instead of 1 - tanh(a)^2",
    "tanh' of before": "the derivative of tanh is taken of the wrong thing: of the state before the step",
    "tanh' no square": "the square is missing in tanh's derivative, 1 - h^2",
    "dh: Wh not transposed": "dprev_h needs Wh transposed: da @ Wh.T",
    "dWh of next": "dWh is made of the state after the step; it needs the one before: prev_h.T @ da",
    "dh not carried": "the gradient of h_{t-1} is not carried: step t must get dh[t] plus what step t+1 sends back",
    "dc not carried": "the gradient of the cell state is not carried from step t+1 to step t",
    "dW overwritten": "the weights' gradients are overwritten at every step instead of added up",
    "db mean": "db is averaged over the batch; it must be summed",
    "dW mean": "the weights' gradients are averaged over the batch; they must be summed",
    "dnext_c ignored": "dnext_c is ignored: the cell state was also used by the next step",
    "dh into c": "the way from dh into the cell state is missing: dc = dc + dh * o * (1 - tanh(c)^2)",
    "tanh(c)' forgotten": "the derivative of tanh(c) is missing: dc = dc + dh * o * (1 - tanh(c)^2)",
    "tanh(c)' of c": "the derivative of tanh(c) is taken of the wrong thing: 1 - c^2 instead of 1 - tanh(c)^2",
    "df of next c": "df is made of the cell state after the step; it needs the one before: df = dc * prev_c",
    "sigmoid' forgotten": "the derivative of the sigmoids is missing: gate * (1 - gate)",
    "sigmoid' half": "the derivative of a sigmoid is gate * (1 - gate), not gate alone",
    "g' as sigmoid": "g is a tanh: its derivative is 1 - g^2, not g * (1 - g)",
    "g' forgotten": "the derivative of g's tanh is missing: 1 - g^2",
    "g' no square": "the square is missing in the derivative of g's tanh, 1 - g^2",
    "dg by f": "da_g is made with the forget gate; it needs the input gate: dc * i * (1 - g^2)",
    "dprev_c without f": "dprev_c needs the forget gate: dc * f",
    "dprev_c by o": "dprev_c is made with the output gate; it needs the forget gate: dc * f",
    "softmax' half": "the softmax's derivative is incomplete: dscore = w * (dw - sum of w * dw)",
    "scale forgotten": "the scores' gradient is not divided by sqrt(H)",
    "query": "the way through the attention's query is missing: prev_h made the scores too",
    "dA weights": "dA lacks what comes through the weighted mean",
    "dA scores": "dA lacks what comes through the scores",
    "dA start": "dA lacks what comes through h0 and c0, the mean over the grid",
    # sequences
    "h not carried": "every step starts from h0: h_t is not carried to the next step",
    "c not carried": "the cell state is not carried to the next step",
    "first skipped": "the first time step is skipped",
    "last skipped": "the last time step is skipped",
    "reversed": "the time steps run from the last to the first",
    "c0 is h0": "c0 must be zero, not h0",
    "h0 zero": "h0 must be the mean of A over the grid, not zero",
    "c0 zero": "c0 must be the mean of A over the grid, not zero",
    "attend once": "the attention is computed once; it needs the new h at every step",
    # forward
    "bias": "the bias b is forgotten",
    "x": "x Wx is missing",
    "h": "h Wh is missing: the state before has no influence",
    "attn": "attn Wattn is missing",
    "weights swapped": "Wh and Wattn are swapped",
    "Wh transposed": "Wh is transposed: it is h @ Wh",
    "no tanh": "tanh is missing",
    "sigmoid for tanh": "there is a sigmoid where tanh belongs",
    "tanh c": "tanh is missing on the cell state: h = o * tanh(c)",
    "g sigmoid": "g has a sigmoid, it needs tanh",
    "g raw": "tanh is missing on g",
    "gates raw": "the sigmoids of i, f and o are missing",
    "no i": "the input gate is missing: c = f * c_before + i * g",
    "no f": "the forget gate is missing: c = f * c_before + i * g",
    "no c": "the cell state before is dropped: c = f * c_before + i * g",
    "no o": "the output gate is missing: h = o * tanh(c)",
    "results swapped": "h and c are returned in the wrong order",
    # attention
    "no scale": "the scores are not divided by sqrt(H)",
    "scale H": "the scores are divided by H instead of sqrt(H)",
    "scale G": "the scores are scaled by the wrong sqrt: it is sqrt(H), H being the size of a cell, not the grid's",
    "scale up": "the scores are multiplied with sqrt(H) instead of divided",
    "softmax axis": "the softmax runs over the wrong axis: it is over the grid of each image",
    "uniform": "the weights are not used: attn is the plain mean of the cells",
    "grid reshaped": "A is reshaped where it must be transposed: (N, H, grid) to (N, grid, H)",
    # loss
    "mean over words": "it is the mean over the words that count; it must be summed over time, averaged over N",
    "mean over all": "it is the mean over N and T; it must be summed over time and averaged over N only",
    "sum": "it is summed over the batch too; it must be averaged over the N captions",
    "null counted": "NULL is counted: positions where y == ignore_index must add nothing",
    "always ignored": "index 0 is ignored even when ignore_index is None",
    "loss axis": "the softmax runs over the wrong axis: it is over the V words",
    "negative": "the sign is wrong: the loss is minus the logarithm",
    "probability": "the logarithm is missing",
}
for _gate in "ifo":
    MISTAKES[f"{_gate}' forgotten"] = f"the derivative of the sigmoid is missing on {_gate}: {_gate} * (1 - {_gate})"
    MISTAKES[f"{_gate}' half"] = f"the derivative of the sigmoid is {_gate} * (1 - {_gate}), not {_gate} alone"
MISTAKES |= {
    name: f"the gates are swapped: they are {' '.join(order)} instead of i f o g" for name, order in ORDERS.items()
}
RARE = {name for name, order in ORDERS.items() if sum(map(str.__ne__, GATES, order)) > 2}  # not looked for in pairs
RARE |= {f"da {name}" for name in RARE}
MISTAKES |= {
    f"da {name}": f"the gates' gradients are swapped: they are {' '.join(order)} instead of i f o g"
    for name, order in ORDERS.items()
}


def pick(wrong, choices, right):
    """What the mistakes choose, or what is right."""
    return next((choice for name, choice in choices.items() if name in wrong), right)


def via(value, route):
    """A tensor with the numbers of ``value`` and the gradient of ``route``."""
    return value.detach() + route - route.detach()


def slope(value, a, derivative):
    """``value``, as a function of ``a`` with this derivative."""
    return via(value, a * derivative.detach())


def total(pairs, b, wrong, after=None):
    """a = the sum of u @ W over the pairs (name, u, W), + b; after, the state that dWh is wrongly made of."""
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


def rnn_step(x, h, Wx, Wh, b, wrong=()):
    after = rnn_step(x, h, Wx, Wh, b) if "dWh of next" in wrong else None
    a = total([("x", x, Wx), ("h", h, Wh)], b, wrong, after)
    y = torch.tanh(a)
    y = pick(wrong, {"no tanh": a, "sigmoid for tanh": torch.sigmoid(a)}, y)
    derivatives = {"tanh' forgotten": torch.ones_like(a), "tanh' twice": 1 - torch.tanh(y) ** 2}
    derivatives |= {"tanh' of a": 1 - a**2, "tanh' no square": 1 - y, "tanh' of before": 1 - h**2}
    derivative = pick(wrong, derivatives, None)
    return y if derivative is None else slope(y, a, derivative)


def lstm_step(x, h, c, Wx, Wh, b, attn=None, Wattn=None, wrong=()):
    pairs = [("x", x, Wx), ("h", h, Wh)]
    if attn is not None:
        weights = (Wattn, Wh) if "weights swapped" in wrong else (Wh, Wattn)
        pairs[1:] = [("h", h, weights[0]), ("attn", attn, weights[1])]
    after = lstm_step(x, h, c, Wx, Wh, b, attn, Wattn)[0] if "dWh of next" in wrong else None
    a = total(pairs, b, wrong, after)
    order = pick(wrong, {f"da {name}": order for name, order in ORDERS.items()}, None)
    if order:
        parts = dict(zip(GATES, a.chunk(4, 1)))
        a = via(a, torch.cat([parts[gate] for gate in order], 1))
    parts = dict(zip(pick(wrong, ORDERS, GATES), a.chunk(4, 1)))
    gates = {}
    for gate in "ifo":
        y = parts[gate] if "gates raw" in wrong else torch.sigmoid(parts[gate])
        if "sigmoid' forgotten" in wrong or f"{gate}' forgotten" in wrong:
            y = slope(y, parts[gate], torch.ones_like(y))
        half = "sigmoid' half" in wrong or f"{gate}' half" in wrong
        gates[gate] = slope(y, parts[gate], y) if half else y
    i, f, o = gates.values()
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


def sequence(kind, x, start, Wx, Wh, b, Wattn=None, wrong=()):
    """h (N, T, H); start is h0, or A for "attention"."""
    if kind == "attention":
        mean = (start.detach() if "dA start" in wrong else start).mean((2, 3))
        h0, c0 = (0 * mean if w in wrong else mean for w in ("h0 zero", "c0 zero"))
    else:
        h0, c0 = start, start if "c0 is h0" in wrong else torch.zeros_like(start)
    h, c, out = h0, c0, []
    times = range(x.shape[1])
    for t in reversed(times) if "reversed" in wrong else times:
        W = [w.detach() if "dW overwritten" in wrong and t else w for w in (Wx, Wh, b, Wattn) if w is not None]
        if "h not carried" in wrong:
            h = h0
        if "c not carried" in wrong:
            c = c0
        if "dh not carried" in wrong and t:
            h = h.detach()
        if "dc not carried" in wrong and t:
            c = c.detach()
        if kind == "rnn":
            h = rnn_step(x[:, t], h, *W, wrong=wrong)
        elif kind == "lstm":
            h, c = lstm_step(x[:, t], h, c, *W, wrong=wrong)
        else:
            attn, _ = attend(h0 if "attend once" in wrong else h, start, wrong)
            h, c = lstm_step(x[:, t], h, c, *W[:3], attn, W[3], wrong=wrong)
        out.append(h)
    if "first skipped" in wrong:
        out = [h0, *out[:-1]]
    if "last skipped" in wrong:
        out = [*out[:-1], torch.zeros_like(h0)]
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


def forward(name, arguments, wrong=()):
    """The results of a ``*_forward``, of the attention or the loss, as a tuple without the cache."""
    values = tuple(arguments.values())
    if name == "temporal_softmax_loss":
        return (softmax_loss(*values, wrong=wrong),)
    if name == "dot_product_attention":
        return attend(*values, wrong=wrong)
    kind, *rest = name.split("_")
    if rest[0] == "step":
        x, h, *others = values
        if kind == "rnn":
            return (rnn_step(x, h, *others, wrong=wrong),)
        if kind == "lstm":
            return lstm_step(x, h, *others, wrong=wrong)
        c, attn, Wx, Wh, Wattn, b = others
        return lstm_step(x, h, c, Wx, Wh, b, attn, Wattn, wrong=wrong)
    if kind == "attention":
        x, A, Wx, Wh, Wattn, b = values
        return (sequence(kind, x, A, Wx, Wh, b, Wattn, wrong=wrong),)
    return (sequence(kind, *values, wrong=wrong),)


def backward(name, arguments, upstream, wrong=()):
    """The gradients of the forward called ``name``, given those of its results, in the order of its arguments."""
    skipped = "first skipped" in wrong or "last skipped" in wrong
    if skipped and "step" not in name and "x" in arguments:
        return _with_a_step_skipped(name, arguments, upstream, wrong)
    if "dnext_c ignored" in wrong and len(upstream) > 1:
        upstream = (upstream[0], torch.zeros_like(upstream[1]))
    inputs = {key: value.detach().requires_grad_() for key, value in arguments.items()}
    nothing = 0 * sum(value.sum() for value in inputs.values())  # whatever the mistakes cut off, the gradient is zero
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
    others = [name for name in wrong if "skipped" not in name]
    kept = slice(1, None) if "first skipped" in wrong else slice(None, -1)
    start = dict(arguments)
    if "first skipped" in wrong and "h0" in arguments and not name.startswith("lstm"):
        start["h0"] = forward(name, arguments, others)[0][:, 0]
    elif "first skipped" in wrong:
        return backward(name, arguments, upstream, others)  # what the cell state then is depends on the learner's cache
    found = backward(name, start | {"x": x[:, kept]}, (dh[:, kept],), others)
    dx = torch.zeros_like(x)
    dx[:, kept] = found[0]
    return (dx, *found[1:])
