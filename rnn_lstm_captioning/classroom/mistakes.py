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
    "tanh' as sigmoid": "the derivative is the sigmoid's, h * (1 - h); that of tanh is 1 - h^2",
    "tanh' (1 - h)^2": "the derivative of tanh is 1 - h^2, not (1 - h)^2",
    "tanh' plus": "the derivative of tanh is 1 - h^2, not 1 + h^2",
    "tanh' negative": "the sign of tanh's derivative is wrong: it is 1 - h^2, not h^2 - 1",
    "tanh' h^2": "the derivative of tanh is 1 - h^2, not h^2",
    "dnext_h ignored": "the incoming gradient is forgotten: da = dnext_h * (1 - h^2)",
    "dx: Wx not transposed": "dx needs Wx transposed: da @ Wx.T",
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
    "tanh(c)' no square": "the square is missing in the derivative of tanh(c): 1 - tanh(c)^2",
    "tanh(c)' twice": "the derivative of tanh(c) takes the tanh twice: it is 1 - tanh(c)^2",
    "tanh(c)' of h": "the derivative of tanh(c) uses next_h: it is 1 - tanh(c)^2, without the output gate",
    "tanh(c)' of prev c": "the derivative of tanh(c) uses the cell state before the step; it needs next_c",
    "dc without o": "the output gate is missing in dc: dc = dc + dh * o * (1 - tanh(c)^2)",
    "dc by f": "dc uses the forget gate where the output gate belongs: dc = dc + dh * o * (1 - tanh(c)^2)",
    "dc by dh": "dc gets dh as it is; it needs dc = dc + dh * o * (1 - tanh(c)^2)",
    "do by c": "do uses c; it needs tanh(c): do = dh * tanh(c)",
    "do by h": "do uses next_h; it needs tanh(c): do = dh * tanh(c)",
    "df of next c": "df uses the cell state after the step; it needs the one before: df = dc * prev_c",
    "di by c": "di uses prev_c; it needs g: di = dc * g",
    "df by g": "df uses g; it needs the cell state before the step: df = dc * prev_c",
    "sigmoid' of a": "the derivative of a sigmoid uses a, the value before the sigmoid: it is gate * (1 - gate)",
    "sigmoid' as tanh": "that is the derivative of tanh; the sigmoid's is y * (1 - y)",
    "sigmoid' twice": "the derivative of a sigmoid takes the sigmoid twice: it is gate * (1 - gate)",
    "sigmoid' negative": "the sign of the sigmoid's derivative is wrong: it is y * (1 - y)",
    "sigmoid' forgotten": "the derivative of the sigmoids is missing: gate * (1 - gate)",
    "sigmoid' half": "the derivative of a sigmoid is gate * (1 - gate), not gate alone",
    "g' as sigmoid": "g is a tanh: its derivative is 1 - g^2, not g * (1 - g)",
    "g' forgotten": "the derivative of g's tanh is missing: 1 - g^2",
    "g' no square": "the square is missing in the derivative of g's tanh, 1 - g^2",
    "g' of a": "the derivative of g's tanh uses a, the value before the tanh: it is 1 - g^2",
    "g' plus": "the derivative of g's tanh is 1 - g^2, not 1 + g^2",
    "g' twice": "the derivative of g's tanh takes the tanh twice: it is 1 - g^2",
    "dg by o": "da_g uses the output gate; it needs the input gate: dc * i * (1 - g^2)",
    "dg by f": "da_g uses the forget gate; it needs the input gate: dc * i * (1 - g^2)",
    "dprev_c without f": "dprev_c needs the forget gate: dc * f",
    "dprev_c zero": "dprev_c is zero; it is dc * f",
    "dprev_c by i": "dprev_c uses the input gate; it needs the forget gate: dc * f",
    "dprev_c by o": "dprev_c uses the output gate; it needs the forget gate: dc * f",
    "softmax' half": "the softmax's derivative is incomplete: dscore = w * (dw - sum of w * dw)",
    "softmax' diagonal": "only the diagonal of the softmax's derivative is there, w * (1 - w): "
    "dscore = w * (dw - sum of w * dw)",
    "softmax' forgotten": "the derivative of the softmax is missing: dscore = w * (dw - sum of w * dw)",
    "scale forgotten": "the scores' gradient is not divided by sqrt(H)",
    "query": "the path through the attention's query is missing: the scores depend on prev_h too",
    "dA weights": "the part of dA that comes through the weighted mean is missing",
    "dA scores": "the part of dA that comes through the scores is missing",
    "dA start sum": "the part of dA through h0 and c0 is not divided by the number of regions: they are a mean",
    "dA start": "the part of dA that comes through h0 and c0, the mean over the grid, is missing",
    # backward, GRU
    "dh direct": "the direct path is missing: dprev_h = du @ Wh.T + dh * z",
    "dh direct whole": "the direct path has dh without z: dprev_h = du @ Wh.T + dh * z",
    "dh by da": "dprev_h uses da_n; it needs du_n = da_n * r: dprev_h = du @ Wh.T + dh * z",
    "dr by h": "dr uses the state; it needs u_n, the product h Wh of n: dr = da_n * u_n",
    "dn whole": "dn is not multiplied by 1 - z: dn = dh * (1 - z)",
    "n' as sigmoid": "n is a tanh: its derivative is 1 - n^2, not n * (1 - n)",
    "dh direct by 1 - z": "the direct path uses 1 - z; it needs z: dprev_h = du @ Wh.T + dh * z",
    "du_n without r": "the reset gate is missing in du_n: du_n = da_n * r, for dWh and dprev_h",
    "dWh by da": "dWh uses da_n; it needs du_n = da_n * r, because r multiplies h Wh",
    "dz sign": "dz has the wrong sign: dz = dh * (prev_h - n)",
    "dz half": "a part of dz is missing: dz = dh * (prev_h - n), because z occurs twice",
    "dn by z": "dn uses z; it needs 1 - z: dn = dh * (1 - z)",
    "r path": "the path through the reset gate is missing: dr = da_n * u_n",
    "n' forgotten": "the derivative of n's tanh is missing: 1 - n^2",
    "n' no square": "the square is missing in the derivative of n's tanh, 1 - n^2",
    # sequences, backward
    "one step alone": "the loop ends after its first step: is the return inside the loop?",
    "dh starts with dh": "dprev_h starts with the last dh; it starts with zeros, and each step adds dh[:, t]",
    "dh not added": "dh[:, t] is added at the last step only: every step gets dh[:, t] plus the gradient from step t+1",
    "dh of the last step": "only dh of the last step is used: every step gets dh[:, t] plus the gradient from step t+1",
    "last dh alone": "every step gets the dh of the last step: step t needs dh[:, t]",
    "dh reversed": "the steps get dh in the wrong order: step t needs dh[:, t]",
    "dx reversed": "dx is in the reverse order of time: dx[:, t] belongs to x[:, t]",
    "dh twice": "dh[:, t] is added twice",
    "backward runs forwards": "the backward loop runs from the first step to the last; it must start at the last one: "
    "reversed(range(T))",
    "aliased": "at the last step the gradient of c is dh; it must be zero there (are dprev_h and dprev_c one array?)",
    "aliased throughout": "dprev_h and dprev_c are the same array, so writing one changes the other: "
    "make two arrays of zeros",
    "dh into carried c": "dh[:, t] is added to the gradient of the cell state too; it belongs to h alone",
    "carried into c": "the gradient of h from step t+1 is added to that of c; it belongs to dh[:, t]",
    "dh for dc": "the step gets dh where the gradient of the cell state belongs",
    "dprev_h added up": "dprev_h is added up over the steps (+=); each step replaces it",
    "dprev_h keeps dh": "dprev_h is added to the gradient that the step was given (+=); each step replaces it",
    "dW by T": "the weights' gradients are divided by T; they are summed over the steps",
    "dW never": "the weights' gradients are never added up: they stay zero",
    "dh0 zero": "dh0 is zero; it is the dprev_h of the first step",
    "dh0 is dh": "dh0 is dh[:, 0]; it is the dprev_h of the first step",
    # sequences
    "h not carried": "every step starts from h0: h_t is not carried to the next step",
    "c not carried": "the cell state is not carried to the next step",
    "h never stored": "h stays zero: the states are not stored in it",
    "h0 not used": "h0 is not used: the first step starts from zeros (is it h[:, t - 1] at t = 0?)",
    "x of the first": "every step gets x[:, 0]; step t needs x[:, t]",
    "x reshaped": "x is reshaped where N and T must be exchanged: use transpose, not reshape",
    "h reshaped": "h is reshaped where N and T must be exchanged: use transpose, not reshape",
    "last for all": "every time step has the state of the last one",
    "c kept for h": "the cell state is returned in h: h needs the hidden states",
    "first skipped keeps h0": "h[:, 0] is h0; it must be the state after the first step",
    "first skipped": "the first time step is skipped",
    "last skipped": "the last time step is skipped",
    "reversed": "the time steps run from the last to the first",
    "c0 is h0": "c0 must be zero, not h0",
    "h0 zero": "h0 must be the mean of A over the grid, not zero",
    "c0 zero": "c0 must be the mean of A over the grid, not zero",
    "h0 sum": "h0 is the sum of A over the grid; it must be the mean",
    "h0 max": "h0 is the largest value of A over the grid; it must be the mean",
    "h0 first": "h0 is a single region of A; it must be the mean over the grid",
    "c asks": "the query of the attention is the cell state; it must be the hidden state",
    "attend once": "the attention is computed once; it needs the new h at every step",
    # forward
    "bias": "the bias b is forgotten",
    "bias outside": "the bias is added outside tanh: h = tanh(x Wx + h Wh + b)",
    "bias twice": "the bias is added twice",
    "relu": "there is a ReLU where tanh belongs",
    "tanh of each": "tanh is taken of each term; it is taken of their sum: h = tanh(x Wx + h Wh + b)",
    "h after tanh": "h Wh is added outside tanh: h = tanh(x Wx + h Wh + b)",
    "tanh twice": "tanh is taken twice",
    "tanh of each, b with h": "tanh is taken of each term; it is taken of their sum: h = tanh(x Wx + h Wh + b)",
    "tanh of each, b with x": "tanh is taken of each term; it is taken of their sum: h = tanh(x Wx + h Wh + b)",
    "h subtracted": "h Wh is subtracted; it is added: x Wx + h Wh + b",
    "b subtracted": "the bias is subtracted; it is added: x Wx + h Wh + b",
    "Wh for attn": "attn is multiplied by Wh; it needs Wattn",
    "Wattn for h": "prev_h is multiplied by Wattn; it needs Wh",
    "x": "x Wx is missing",
    "h": "h Wh is missing: the previous state has no influence",
    "attn": "attn Wattn is missing",
    "weights swapped": "Wh and Wattn are swapped",
    "Wh transposed": "Wh is transposed: it is h @ Wh",
    "no tanh": "tanh is missing",
    "sigmoid for tanh": "there is a sigmoid where tanh belongs",
    "tanh c": "tanh is missing on the cell state: h = o * tanh(c)",
    "sigmoid c": "there is a sigmoid on the cell state: h = o * tanh(c)",
    "tanh in c": "next_c has a tanh, which belongs only into h: c = f * prev_c + i * g, h = o * tanh(c)",
    "h of prev c": "h uses the cell state before the step; it needs next_c: h = o * tanh(next_c)",
    "c for h": "next_c is returned for next_h: h = o * tanh(c)",
    "interleaved": "the gates are taken from interleaved columns; they are side by side: the first H columns are i",
    "forget bias added": "1 is added to the forget gate; that belongs into the initial bias, not into the step",
    "f is 1 - i": "the forget gate is replaced by 1 - i",
    "i is 1 - f": "the input gate is replaced by 1 - f",
    "i twice": "the input gate is used twice",
    "g relu": "g has a ReLU, it needs tanh",
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
    "r twice": "the reset gate is applied twice, to h and to the product; here it is r * (h Wh)",
    "r on p": "the reset gate multiplies x Wx + b too; it multiplies h Wh only: n = tanh(p_n + r * u_n)",
    "z swapped": "z and 1 - z are swapped: h = (1 - z) * n + z * prev_h",
    "z for r": "z is used where the reset gate belongs: n = tanh(p_n + r * u_n)",
    "r for z": "r is used where z belongs: h = (1 - z) * n + z * prev_h",
    "h kept whole": "prev_h is not multiplied by z: h = (1 - z) * n + z * prev_h",
    "no u_n": "h Wh is missing in n: n = tanh(p_n + r * u_n)",
    "n relu": "n has a ReLU, it needs tanh",
    "no z n": "n is not multiplied by 1 - z: h = (1 - z) * n + z * prev_h",
    "no z h": "the previous state is dropped: h = (1 - z) * n + z * prev_h",
    "n sigmoid": "n has a sigmoid, it needs tanh",
    "n raw": "tanh is missing on n",
    "rz raw": "the sigmoids of r and z are missing",
    "sign of a": "the sign is wrong: sigmoid(a) = 1 / (1 + exp(-a))",
    "tanh for sigmoid": "there is a tanh where the sigmoid belongs: 1 / (1 + exp(-a))",
    "softmax over the batch": "the softmax runs over the wrong axis: each row is a distribution of its own",
    # attention
    "no scale": "the scores are not divided by sqrt(H)",
    "scale H": "the scores are divided by H instead of sqrt(H)",
    "scale G": "the scores are divided by the wrong square root: it is sqrt(H), H the hidden size",
    "scale up": "the scores are multiplied by sqrt(H) instead of divided",
    "scale N": "the scores are divided by the wrong square root: it is sqrt(H), H the hidden size",
    "scale after": "the weights are divided by sqrt(H) after the softmax; the scores are divided before it",
    "tanh scores": "there is a tanh on the scores; they are a dot product, divided by sqrt(H)",
    "scores not softmaxed": "the softmax is missing: the scores are used as weights",
    "softmax over one": "the softmax runs over an axis of size one, so all weights are 1: it is over the grid",
    "softmax over all": "the softmax runs over the whole batch; it is over the grid of each image",
    "softmax over rows": "the softmax runs over one row of the grid; it is over the whole grid of each image",
    "softmax over columns": "the softmax runs over one column of the grid; it is over the whole grid of each image",
    "normalised by the sum": "the scores are divided by their sum; the weights are a softmax, exp(score) / sum of exp",
    "sigmoid for softmax": "there is a sigmoid where the softmax over the grid belongs",
    "exp alone": "exp(score) is not divided by its sum over the grid: that is half of a softmax",
    "hard": "only the region with the largest score is used; the weights are a softmax over the grid",
    "mean for sum": "attn is divided by the number of regions; it is the sum of w_k A_k",
    "sum over the batch": "attn is summed over the batch; each image has its own",
    "scores returned": "the scores are returned for attn_weights; they are the values after the softmax",
    "weights turned": "the rows and columns of attn_weights are exchanged",
    "grid reshaped in the sum": "A is reshaped for the weighted sum, where it must be transposed to (N, grid, H)",
    "grid turned": "the rows and columns of the grid are exchanged",
    "softmax axis": "the softmax runs over the wrong axis: it is over the grid of each image",
    "uniform": "the weights are not used: attn is the plain mean of the regions",
    "grid reshaped": "A is reshaped where it must be transposed: (N, H, grid) to (N, grid, H)",
    # loss
    "mean over words": "it is the mean over the words that count; it must be summed over time and averaged over N",
    "mean over all": "it is the mean over N and T; it must be summed over time and averaged over N only",
    "mean and N": "it is averaged over N and T, and divided by N again; it must be summed over time, averaged over N",
    "words and N": "it is averaged over the words, and divided by N again; it must be summed over time",
    "by T": "it is divided by T; it must be summed over time and averaged over N",
    "by N squared": "it is divided by N twice",
    "dx not averaged": "dx is not averaged over the N captions, although the loss is",
    "minus one forgotten": "the -1 at the right word is missing: dx = softmax - 1 at the target",
    "mean of exp": "exp is averaged over the words; it is summed: log of the sum of exp",
    "shift not undone": "the largest score is subtracted only once; subtract it in both places, or in none",
    "softmax twice": "the softmax is taken twice: F.cross_entropy and log_softmax take the scores themselves",
    "scores masked": "the scores of ignored positions are set to zero, which still adds log V for each; "
    "their losses must be",
    "mask inverted": "the mask is inverted: only the ignored positions are counted",
    "shifted": "words and scores are shifted against each other in the loss; x[:, t] already belongs to y[:, t]",
    "log2": "the logarithm has base 2; it needs the natural one",
    "sum": "it is summed over the batch too; it must be averaged over the N captions",
    "null counted": "NULL is counted: positions where y == ignore_index must add nothing",
    "always ignored": "index 0 is ignored even when ignore_index is None",
    "loss axis": "the softmax runs over the wrong axis: it is over the V words",
    "negative": "the sign is wrong: the loss is minus the logarithm",
    "probability": "the logarithm is missing",
}
for _gate in sorted({gate for gates in GATES.values() for gate in gates if gate.islower()}):
    MISTAKES[f"{_gate}' forgotten"] = f"the derivative of the sigmoid is missing on {_gate}: {_gate} * (1 - {_gate})"
    MISTAKES[f"{_gate}' as tanh"] = (
        f"{_gate} is a sigmoid: its derivative is {_gate} * (1 - {_gate}), not 1 - {_gate}^2"
    )
    MISTAKES[f"d{_gate} zero"] = f"d{_gate} is zero: the gradient through the gate {_gate} is missing"
    MISTAKES[f"{_gate} raw"] = f"the sigmoid of {_gate} is missing"
    MISTAKES[f"{_gate} tanh"] = f"{_gate} has a tanh, it needs a sigmoid"
    MISTAKES[f"{_gate}' half"] = f"the derivative of the sigmoid is {_gate} * (1 - {_gate}), not {_gate} alone"
for _name, (_order, _gates) in ORDERS.items():
    _swapped = f"are swapped: they are {' '.join(_order)} instead of {' '.join(_gates)}"
    MISTAKES[_name] = f"the gates {_swapped}"
    MISTAKES[f"da {_name}"] = f"the gates' gradients {_swapped}"
# not tried in pairs of mistakes
RARE = {name for name, (order, gates) in ORDERS.items() if sum(map(str.__ne__, gates, order)) > 2}
RARE |= {f"da {name}" for name in RARE}
# mistakes of the loop over time, whatever the step is
_names = list(MISTAKES)
LOOP = {name for name in MISTAKES if _names.index("dh not added") <= _names.index(name) <= _names.index("attend once")}
# the others change everything after them, so that two of them can look like a third mistake
PAIRED = {"query", "dA weights", "dA scores", "dA start", "dA start sum", "scale forgotten", "dh not carried"}
PAIRED |= {"dc not carried", "dW overwritten", "dW by T", "h not carried", "c not carried", "c0 is h0", "attend once"}
PAIRED |= {"h0 zero", "c0 zero"}
LOOP |= {"dh not carried", "dc not carried", "dW overwritten"}
