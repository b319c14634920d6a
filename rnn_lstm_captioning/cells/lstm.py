"""The LSTM: one step, the sequence, and both backward passes by hand.

Shapes: N batch, T time steps, D word-vector size, H hidden size. Weights are (in, out), for row
vectors: ``x @ Wx``. The weights of the four gates stand side by side in one matrix, in the order i, f,
o, g (``torch.nn.LSTM``: i, f, g, o, transposed). Inside a sequence the time axis comes first, so that
one step is one contiguous block of memory.

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers,
Schmidhuber and Cummins (2000); forget bias 1: Jozefowicz, Zaremba and Sutskever (2015).
"""

import torch
from torch import Tensor, nn

from .arithmetic import addmm, empty_blocks, joined, matmul, multiply, sigmoid_gradient, tanh, tanh_gradient
from .autograd import at_autocast_precision
from .interface import RecurrentCell
from .shapes import check_tensors

__all__ = [
    "LSTM",
    "lstm_step_forward",
    "lstm_step_backward",
    "lstm_forward",
    "lstm_backward",
]

# ------------------------------------------------------------------------------------- one step


def lstm_step_forward(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, tuple]:
    """One time step.

    Args: x (N, D), prev_h (N, H), prev_c (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,), of one
        floating dtype.
    Returns: next_h (N, H), next_c (N, H), and a cache for :func:`lstm_step_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(
        x=(x, "N D"), prev_h=(prev_h, "N H"), prev_c=(prev_c, "N H"),
        Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    next_h, next_c, gates = _step(_project(x, Wx, b), prev_h, prev_c, Wh)
    return next_h, next_c, (x, prev_h, gates, Wx, Wh)


@torch.no_grad()
def lstm_step_backward(dnext_h: Tensor, dnext_c: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of one time step.

    Args: dnext_h (N, H), dnext_c (N, H), the gradients of the loss with respect to the step's two
        results; cache, from the forward.
    Returns: dx (N, D), dprev_h (N, H), dprev_c (N, H), dWx (D, 4H), dWh (H, 4H), db (4H,).
    Raises: TypeError or ValueError if a gradient does not fit.
    """
    x, prev_h, gates, Wx, Wh = cache
    check_tensors(prev_h=(prev_h, "N H"), dnext_h=(dnext_h, "N H"), dnext_c=(dnext_c, "N H"))
    da = prev_h.new_empty(len(x), Wx.shape[1])
    dprev_h, dprev_c = _step_backward(dnext_h, dnext_c, gates, Wh, out=da)
    dx, dWx, dWh, db = _input_and_weight_gradients(da, x, prev_h, Wx)
    return dx, dprev_h, dprev_c, dWx, dWh, db


# --------------------------------------------------------------------------------- the sequence


def lstm_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """The whole sequence, from c_0 = 0.

    Args: x (N, T, D), h0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,), all of one floating dtype.
    Returns: h (N, T, H), the hidden states h_1 ... h_T, and a cache for :func:`lstm_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    x = x.transpose(0, 1)  # (T, N, D)
    p = _project(x.flatten(0, 1), Wx, b).unflatten(0, x.shape[:2])  # (T, N, 4H), every step at once
    states, c, steps = [h0], torch.zeros_like(h0), []  # states[t] is h_t
    for p_t in p.unbind():
        h, c, gates = _step(p_t, states[-1], c, Wh)
        states.append(h)
        steps.append(gates)
    h = torch.stack(states[1:])  # (T, N, H)
    return h.transpose(0, 1), (x, states, steps, Wx, Wh)


@torch.no_grad()
def lstm_backward(dh: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of the whole sequence: backpropagation through time.

    Args: dh (N, T, H), the gradient of the loss with respect to every h_t; cache, from the forward.
    Returns: dx (N, T, D), dh0 (N, H), dWx (D, 4H), dWh (H, 4H), db (4H,).
    Raises: TypeError or ValueError if dh does not fit.
    """
    x, states, steps, Wx, Wh = cache
    T, N, D = x.shape
    check_tensors(h0=(states[0], "N H"), x=(x, "T N D"), dh=(dh, "N T H"))
    dh = dh.transpose(0, 1)
    da = empty_blocks(dh, T, N, Wx.shape[1])  # T times (N, 4H), filled from the last step to the first
    dprev_h = dprev_c = torch.zeros_like(states[0])
    for t in reversed(range(T)):
        # dh_t = dh_t^loss + dh_t^next: h_t is used by the loss and by step t + 1      (LSTM-17)
        dprev_h, dprev_c = _step_backward(dh[t] + dprev_h, dprev_c, steps[t], Wh, out=da[t])
    rows = joined(da), x.flatten(0, 1), torch.cat(states[:-1])  # T * N rows each
    dx, dWx, dWh, db = _input_and_weight_gradients(*rows, Wx)
    return dx.view(T, N, D).transpose(0, 1), dprev_h, dWx, dWh, db


# ------------------------------------- the arithmetic, written once: the step and the sequence use it


def _project(x, Wx, b):
    # p_t = x_t Wx + b                                                                  (LSTM-1)
    return addmm(b, x, Wx)  # (rows, 4H)


def _step(p, prev_h, prev_c, Wh):
    H = prev_h.shape[1]
    # a_t = p_t + h_{t-1} Wh                                                            (LSTM-2)
    a = addmm(p, prev_h, Wh)  # (N, 4H)
    # i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)                                (LSTM-3)
    ifo = torch.sigmoid(a[:, : 3 * H])  # (N, 3H)
    i, f, o = ifo.chunk(3, dim=1)  # (N, H) each
    # g = tanh(a_g)                                                                     (LSTM-4)
    g = tanh(a[:, 3 * H :])  # (N, H)
    # c_t = f * c_{t-1} + i * g                                                         (LSTM-5)
    next_c = torch.addcmul(f * prev_c, i, g)  # (N, H)
    # h_t = o * tanh(c_t)                                                               (LSTM-6)
    tanh_c = tanh(next_c)  # (N, H)
    next_h = o * tanh_c  # (N, H)
    return next_h, next_c, (ifo, g, prev_c, tanh_c)


def _step_backward(dh, dc, gates, Wh, out):
    ifo, g, prev_c, tanh_c = gates
    i, f, o = ifo.chunk(3, dim=1)
    di, df, do, da_g = out.chunk(4, dim=1)
    H = g.shape[1]
    # dc_t = dc_t^next + dh_t * o * (1 - tanh(c_t)^2)                                   (LSTM-7)
    dc = dc + tanh_gradient(dh * o, tanh_c)  # (N, H)
    # di = dc_t * g     df = dc_t * c_{t-1}     do = dh_t * tanh(c_t)                   (LSTM-8)
    multiply(dc, g, out=di)  # (N, H), and so are the others
    multiply(dc, prev_c, out=df)
    multiply(dh, tanh_c, out=do)
    # da = dgate * gate * (1 - gate) for the three sigmoid gates, in place              (LSTM-9)
    sigmoid_gradient(out[:, : 3 * H], ifo, out=out[:, : 3 * H])  # (N, 3H)
    # da_g = dc_t * i * (1 - g^2)                                                      (LSTM-10)
    tanh_gradient(dc * i, g, out=da_g)  # (N, H)
    # dh_{t-1}^next = da_t Wh^T                                                        (LSTM-11)
    dprev_h = matmul(out, Wh.T)  # (N, H)
    # dc_{t-1}^next = dc_t * f                                                         (LSTM-12)
    return dprev_h, dc * f


def _input_and_weight_gradients(da, x, prev_h, Wx):
    # dx_t = da_t Wx^T                                                                 (LSTM-13)
    dx = matmul(da, Wx.T)  # (rows, D)
    # dWx = sum over t of x_t^T da_t: stacked rows turn the sum into one matmul        (LSTM-14)
    dWx = matmul(x.T, da)  # (D, 4H)
    # dWh = sum over t of h_{t-1}^T da_t                                               (LSTM-15)
    dWh = matmul(prev_h.T, da)  # (H, 4H)
    # db = sum over t and the batch of da_t                                            (LSTM-16)
    db = da.sum(0)  # (4H,)
    return dx, dWx, dWh, db


# ----------------------------------------------------------------------------------- the module


class LSTM(RecurrentCell):
    """An LSTM layer, whose gradients come from :func:`lstm_backward`.

    Parameters: Wx (input_dim, 4 hidden_dim) and Wh (hidden_dim, 4 hidden_dim), drawn from
    N(0, 1/fan_in); b (4 hidden_dim,), one for the forget gate, so that a new cell keeps its state, and
    zero for the others.
    """

    name, title, prefix = "lstm", "LSTM", "lstm"

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, 4 * hidden_dim) / input_dim**0.5)
        self.Wh = nn.Parameter(torch.randn(hidden_dim, 4 * hidden_dim) / hidden_dim**0.5)
        self.b = nn.Parameter(torch.zeros(4 * hidden_dim))
        self.b.data[hidden_dim : 2 * hidden_dim] = 1

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        """x (N, T, D), h0 (N, H) -> h (N, T, H)."""
        tensors = at_autocast_precision(x, h0, self.Wx, self.Wh, self.b)
        return self.by_hand(lstm_forward, lstm_backward, *tensors)

    def step_forward(self, x: Tensor, prev_h: Tensor, prev_c: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D), prev_h (N, H), prev_c (N, H) -> next_h (N, H), next_c (N, H)."""
        tensors = at_autocast_precision(x, prev_h, prev_c, self.Wx, self.Wh, self.b)
        return lstm_step_forward(*tensors)[:2]

    def start(self, image: Tensor) -> tuple[Tensor, ...]:
        """image (N, H), which is h_0 -> the state (h, c), with c_0 = 0."""
        return image, torch.zeros_like(image)

    def step(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> tuple[tuple[Tensor, ...], None]:
        """x (N, D), state (h, c) -> the next state, and no attention weights."""
        h, c = state
        return self.step_forward(x, h, c), None

    def gates(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> dict[str, Tensor]:
        """The values of one step that the figures draw: name -> (N, H)."""
        h, c = state
        _, next_c, cache = lstm_step_forward(x, h, c, self.Wx, self.Wh, self.b)
        ifo, g, _, _ = cache[2]
        i, f, o = ifo.chunk(3, dim=1)
        return {"input gate i": i, "forget gate f": f, "output gate o": o, "new content g": g, "cell state c": next_c}
