"""The mistakes that learners make, each with the sentence that the checker prints.

The functions of ``plain_cells`` make a mistake if its name is in their argument ``wrong``.
"""

from itertools import permutations

# the gates of each cell in their order; a capital letter has a tanh, the others have a sigmoid
GATES = {"lstm": "ifoG", "gru": "rzN"}
ORDERS = {  # the gates in a wrong order: name -> (order, right order)
    f"order {''.join(order)}": (order, gates)
    for gates in map(str.lower, GATES.values())
    for order in permutations(gates)
    if "".join(order) != gates
}

MISTAKES = {
    # the checker names the first one that explains the results: backward passes first, then sequences, then forwards
    # backward
    "tanh' forgotten": "the derivative of tanh is missing: da = dh * (1 - h^2)",
    "tanh' twice": "the derivative of tanh uses the wrong value: it is 1 - h^2, and h already is tanh(a)",
    "tanh' of a": "the derivative of tanh uses the wrong value: 1 - a^2 instead of 1 - tanh(a)^2",
    "tanh' of before": "the derivative of tanh uses the wrong value: the state before the step",
    "tanh' no square": "the square is missing in tanh's derivative, 1 - h^2",
    "dh: Wh not transposed": "dprev_h needs Wh transposed: da @ Wh.T",
    "dWh of next": "dWh uses the state after the step; it needs the state before: prev_h.T @ da",
    "dh not carried": "the gradient of h_{t-1} is not carried: step t must get dh[t] plus the gradient from step t+1",
    "dc not carried": "the gradient of the cell state is not carried from step t+1 to step t",
    "dW overwritten": "the weights' gradients are overwritten at every step instead of added up",
    "db mean": "db is averaged over the batch; it must be summed",
    "dW mean": "the weights' gradients are averaged over the batch; they must be summed",
    "dnext_c ignored": "dnext_c is ignored: the cell state was also used by the next step",
    "dh into c": "the path from dh into the cell state is missing: dc = dc + dh * o * (1 - tanh(c)^2)",
    "tanh(c)' forgotten": "the derivative of tanh(c) is missing: dc = dc + dh * o * (1 - tanh(c)^2)",
    "tanh(c)' of c": "the derivative of tanh(c) uses the wrong value: 1 - c^2 instead of 1 - tanh(c)^2",
    "df of next c": "df uses the cell state after the step; it needs the one before: df = dc * prev_c",
    "sigmoid' forgotten": "the derivative of the sigmoids is missing: gate * (1 - gate)",
    "sigmoid' half": "the derivative of a sigmoid is gate * (1 - gate), not gate alone",
    "g' as sigmoid": "g is a tanh: its derivative is 1 - g^2, not g * (1 - g)",
    "g' forgotten": "the derivative of g's tanh is missing: 1 - g^2",
    "g' no square": "the square is missing in the derivative of g's tanh, 1 - g^2",
    "dg by f": "da_g uses the forget gate; it needs the input gate: dc * i * (1 - g^2)",
    "dprev_c without f": "dprev_c needs the forget gate: dc * f",
    "dprev_c by o": "dprev_c uses the output gate; it needs the forget gate: dc * f",
    "softmax' half": "the softmax's derivative is incomplete: dscore = w * (dw - sum of w * dw)",
    "scale forgotten": "the scores' gradient is not divided by sqrt(H)",
    "query": "the path through the attention's query is missing: the scores depend on prev_h too",
    "dA weights": "the part of dA that comes through the weighted mean is missing",
    "dA scores": "the part of dA that comes through the scores is missing",
    "dA start": "the part of dA that comes through h0 and c0, the mean over the grid, is missing",
    # backward, GRU
    "dh direct": "the direct path is missing: dprev_h = du @ Wh.T + dh * z",
    "dh direct by 1 - z": "the direct path uses 1 - z; it needs z: dprev_h = du @ Wh.T + dh * z",
    "du_n without r": "the reset gate is missing in du_n: du_n = da_n * r, for dWh and dprev_h",
    "dWh by da": "dWh uses da_n; it needs du_n = da_n * r, because r multiplies h Wh",
    "dz sign": "dz has the wrong sign: dz = dh * (prev_h - n)",
    "dz half": "a part of dz is missing: dz = dh * (prev_h - n), because z occurs twice",
    "dn by z": "dn uses z; it needs 1 - z: dn = dh * (1 - z)",
    "r path": "the path through the reset gate is missing: dr = da_n * u_n",
    "n' forgotten": "the derivative of n's tanh is missing: 1 - n^2",
    "n' no square": "the square is missing in the derivative of n's tanh, 1 - n^2",
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
    "h": "h Wh is missing: the previous state has no influence",
    "attn": "attn Wattn is missing",
    "weights swapped": "Wh and Wattn are swapped",
    "Wh transposed": "Wh is transposed: it is h @ Wh",
    "no tanh": "tanh is missing",
    "sigmoid for tanh": "there is a sigmoid where tanh belongs",
    "tanh c": "tanh is missing on the cell state: h = o * tanh(c)",
    "g sigmoid": "g has a sigmoid, it needs tanh",
    "g raw": "tanh is missing on g",
    "gates raw": "the sigmoids of i, f and o are missing",
    "no i": "the input gate is missing: c = f * prev_c + i * g",
    "no f": "the forget gate is missing: c = f * prev_c + i * g",
    "no c": "the previous cell state is dropped: c = f * prev_c + i * g",
    "no o": "the output gate is missing: h = o * tanh(c)",
    "results swapped": "h and c are returned in the wrong order",
    # forward, GRU
    "no r": "the reset gate is missing: n = tanh(p_n + r * u_n)",
    "r before": "the reset gate multiplies h before the product, as in the paper; here it is r * (h Wh), as in nn.GRU",
    "r on p": "the reset gate multiplies x Wx + b too; it multiplies h Wh only: n = tanh(p_n + r * u_n)",
    "z swapped": "z and 1 - z are swapped: h = (1 - z) * n + z * prev_h",
    "no z n": "n is not multiplied by 1 - z: h = (1 - z) * n + z * prev_h",
    "no z h": "the previous state is dropped: h = (1 - z) * n + z * prev_h",
    "n sigmoid": "n has a sigmoid, it needs tanh",
    "n raw": "tanh is missing on n",
    "rz raw": "the sigmoids of r and z are missing",
    # attention
    "no scale": "the scores are not divided by sqrt(H)",
    "scale H": "the scores are divided by H instead of sqrt(H)",
    "scale G": "the scores are divided by the wrong square root: it is sqrt(H), H the hidden size",
    "scale up": "the scores are multiplied by sqrt(H) instead of divided",
    "softmax axis": "the softmax runs over the wrong axis: it is over the grid of each image",
    "uniform": "the weights are not used: attn is the plain mean of the regions",
    "grid reshaped": "A is reshaped where it must be transposed: (N, H, grid) to (N, grid, H)",
    # loss
    "mean over words": "it is the mean over the words that count; it must be summed over time and averaged over N",
    "mean over all": "it is the mean over N and T; it must be summed over time and averaged over N only",
    "sum": "it is summed over the batch too; it must be averaged over the N captions",
    "null counted": "NULL is counted: positions where y == ignore_index must add nothing",
    "always ignored": "index 0 is ignored even when ignore_index is None",
    "loss axis": "the softmax runs over the wrong axis: it is over the V words",
    "negative": "the sign is wrong: the loss is minus the logarithm",
    "probability": "the logarithm is missing",
}
for _gate in sorted({gate for gates in GATES.values() for gate in gates if gate.islower()}):
    MISTAKES[f"{_gate}' forgotten"] = f"the derivative of the sigmoid is missing on {_gate}: {_gate} * (1 - {_gate})"
    MISTAKES[f"{_gate}' half"] = f"the derivative of the sigmoid is {_gate} * (1 - {_gate}), not {_gate} alone"
for _name, (_order, _gates) in ORDERS.items():
    _swapped = f"are swapped: they are {' '.join(_order)} instead of {' '.join(_gates)}"
    MISTAKES[_name] = f"the gates {_swapped}"
    MISTAKES[f"da {_name}"] = f"the gates' gradients {_swapped}"
# not tried in pairs of mistakes
RARE = {name for name, (order, gates) in ORDERS.items() if sum(map(str.__ne__, gates, order)) > 2}
RARE |= {f"da {name}" for name in RARE}
