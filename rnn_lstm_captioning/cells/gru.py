"""The GRU, gated recurrent unit: one step, the sequence, and both backward passes by hand.

Shapes: N batch, T time steps, D word-vector size, H hidden size. Weights are (in, out), for row
vectors: ``x @ Wx``. The weights of the three gates stand side by side in one matrix, in the order r, z,
n (``torch.nn.GRU``: the same order, transposed). Inside a sequence the time axis comes first, so that
one step is one contiguous block of memory.

Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), equations 5
to 8, in the form of ``torch.nn.GRU``: the reset gate multiplies the product with the weights,
r * (h Wh); in the paper it multiplies the state, (r * h) Wh. So one matmul serves all three gates.
"""

import torch
from torch import Tensor, nn

from .arithmetic import addmm, empty_blocks, joined, matmul, multiply, sigmoid_gradient, tanh, tanh_gradient
from .autograd import at_autocast_precision
from .interface import RecurrentCell
from .shapes import check_tensors

__all__ = [
    "GRU",
    "gru_step_forward",
    "gru_step_backward",
    "gru_forward",
    "gru_backward",
]

# ------------------------------------------------------------------------------------- one step


def gru_step_forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """One time step.

    Args: x (N, D), prev_h (N, H), Wx (D, 3H), Wh (H, 3H), b (3H,), all of one floating dtype.
    Returns: next_h (N, H), and a cache for :func:`gru_step_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(prev_h=(prev_h, "N H"), x=(x, "N D"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"))
    next_h, gates = _step(_project(x, Wx, b), prev_h, Wh)
    return next_h, (x, prev_h, gates, Wx, Wh)


@torch.no_grad()
def gru_step_backward(dnext_h: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of one time step.

    Args: dnext_h (N, H), the gradient of the loss with respect to next_h; cache, from the forward.
    Returns: dx (N, D), dprev_h (N, H), dWx (D, 3H), dWh (H, 3H), db (3H,).
    Raises: TypeError or ValueError if dnext_h does not fit.
    """
    x, prev_h, gates, Wx, Wh = cache
    check_tensors(prev_h=(prev_h, "N H"), dnext_h=(dnext_h, "N H"))
    dp, du = prev_h.new_empty(2, len(x), Wx.shape[1])
    dprev_h = _step_backward(dnext_h, prev_h, gates, Wh, dp=dp, du=du)
    dx, dWx, dWh, db = _input_and_weight_gradients(dp, du, x, prev_h, Wx)
    return dx, dprev_h, dWx, dWh, db


# --------------------------------------------------------------------------------- the sequence


def gru_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """The whole sequence.

    Args: x (N, T, D), h0 (N, H), Wx (D, 3H), Wh (H, 3H), b (3H,), all of one floating dtype.
    Returns: h (N, T, H), the hidden states h_1 ... h_T, and a cache for :func:`gru_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 3H"), Wh=(Wh, "H 3H"), b=(b, "3H"))
    x = x.transpose(0, 1)  # (T, N, D)
    p = _project(x.flatten(0, 1), Wx, b).unflatten(0, x.shape[:2])  # (T, N, 3H), every step at once
    states, steps = [h0], []  # states[t] is h_t
    for p_t in p.unbind():
        h, gates = _step(p_t, states[-1], Wh)
        states.append(h)
        steps.append(gates)
    h = torch.stack(states[1:])  # (T, N, H)
    return h.transpose(0, 1), (x, states, steps, Wx, Wh)


@torch.no_grad()
def gru_backward(dh: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of the whole sequence: backpropagation through time.

    Args: dh (N, T, H), the gradient of the loss with respect to every h_t; cache, from the forward.
    Returns: dx (N, T, D), dh0 (N, H), dWx (D, 3H), dWh (H, 3H), db (3H,).
    Raises: TypeError or ValueError if dh does not fit.
    """
    x, states, steps, Wx, Wh = cache
    T, N, D = x.shape
    check_tensors(h0=(states[0], "N H"), x=(x, "T N D"), dh=(dh, "N T H"))
    dh = dh.transpose(0, 1)
    dp, du = (
        empty_blocks(dh, T, N, Wx.shape[1]) for _ in range(2)
    )  # T times (N, 3H) each, filled from the last step to the first
    dprev_h = torch.zeros_like(states[0])
    for t in reversed(range(T)):
        # dh_t = dh_t^loss + dh_t^next: h_t is used by the loss and by step t + 1       (GRU-16)
        dprev_h = _step_backward(dh[t] + dprev_h, states[t], steps[t], Wh, dp=dp[t], du=du[t])
    rows = joined(dp), joined(du), x.flatten(0, 1), torch.cat(states[:-1])  # T * N rows each
    dx, dWx, dWh, db = _input_and_weight_gradients(*rows, Wx)
    return dx.view(T, N, D).transpose(0, 1), dprev_h, dWx, dWh, db


# ------------------------------------- the arithmetic, written once: the step and the sequence use it


def _project(x, Wx, b):
    # p_t = x_t Wx + b                                                                   (GRU-1)
    return addmm(b, x, Wx)  # (rows, 3H)


def _step(p, prev_h, Wh):
    H = prev_h.shape[1]
    # u_t = h_{t-1} Wh                                                                   (GRU-2)
    u = matmul(prev_h, Wh)  # (N, 3H)
    # r, z = sigmoid(p_r + u_r), sigmoid(p_z + u_z)                                      (GRU-3)
    rz = torch.sigmoid(p[:, : 2 * H] + u[:, : 2 * H])  # (N, 2H)
    r, z = rz.chunk(2, dim=1)  # (N, H) each
    # n = tanh(p_n + r * u_n)                                                            (GRU-4)
    u_n = u[:, 2 * H :]  # (N, H)
    n = tanh(torch.addcmul(p[:, 2 * H :], r, u_n))  # (N, H)
    # h_t = (1 - z) * n + z * h_{t-1}                                                    (GRU-5)
    next_h = torch.lerp(n, prev_h, z)  # (N, H)
    return next_h, (rz, n, u_n)


def _step_backward(dh, prev_h, gates, Wh, dp, du):
    rz, n, u_n = gates
    r, z = rz.chunk(2, dim=1)
    dr, dz, da_n = dp.chunk(3, dim=1)
    H = n.shape[1]
    # dz = dh_t * (h_{t-1} - n)     dn = dh_t * (1 - z)                                  (GRU-6)
    multiply(dh, prev_h - n, out=dz)  # (N, H), and so are the others
    dn = dh * (1 - z)
    # da_n = dn * (1 - n^2), the gradient of p_n too                                     (GRU-7)
    tanh_gradient(dn, n, out=da_n)
    # dr = da_n * u_n                                                                    (GRU-8)
    multiply(da_n, u_n, out=dr)
    # da = dgate * gate * (1 - gate) for r and z, in place                               (GRU-9)
    sigmoid_gradient(dp[:, : 2 * H], rz, out=dp[:, : 2 * H])  # (N, 2H)
    # du_r, du_z = da_r, da_z     du_n = da_n * r                                       (GRU-10)
    du[:, : 2 * H] = dp[:, : 2 * H]
    multiply(da_n, r, out=du[:, 2 * H :])
    # dh_{t-1}^next = du_t Wh^T + dh_t * z                                              (GRU-11)
    return addmm(dh * z, du, Wh.T)  # (N, H)


def _input_and_weight_gradients(dp, du, x, prev_h, Wx):
    # dx_t = dp_t Wx^T                                                                  (GRU-12)
    dx = matmul(dp, Wx.T)  # (rows, D)
    # dWx = sum over t of x_t^T dp_t: stacked rows turn the sum into one matmul         (GRU-13)
    dWx = matmul(x.T, dp)  # (D, 3H)
    # dWh = sum over t of h_{t-1}^T du_t                                                (GRU-14)
    dWh = matmul(prev_h.T, du)  # (H, 3H)
    # db = sum over t and the batch of dp_t                                             (GRU-15)
    db = dp.sum(0)  # (3H,)
    return dx, dWx, dWh, db


# ----------------------------------------------------------------------------------- the module


class GRU(RecurrentCell):
    """A GRU layer, whose gradients come from :func:`gru_backward`.

    Parameters: Wx (input_dim, 3 hidden_dim) and Wh (hidden_dim, 3 hidden_dim), drawn from
    N(0, 1/fan_in); b (3 hidden_dim,), zero.
    """

    name, title, prefix = "gru", "GRU", "gru"

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, 3 * hidden_dim) / input_dim**0.5)
        self.Wh = nn.Parameter(torch.randn(hidden_dim, 3 * hidden_dim) / hidden_dim**0.5)
        self.b = nn.Parameter(torch.zeros(3 * hidden_dim))

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        """x (N, T, D), h0 (N, H) -> h (N, T, H)."""
        tensors = at_autocast_precision(x, h0, self.Wx, self.Wh, self.b)
        return self.by_hand(gru_forward, gru_backward, *tensors)

    def step_forward(self, x: Tensor, prev_h: Tensor) -> Tensor:
        """x (N, D), prev_h (N, H) -> next_h (N, H)."""
        return gru_step_forward(*at_autocast_precision(x, prev_h, self.Wx, self.Wh, self.b))[0]

    def start(self, image: Tensor) -> tuple[Tensor, ...]:
        """image (N, H), which is h_0 -> the state (h,)."""
        return (image,)

    def step(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> tuple[tuple[Tensor, ...], None]:
        """x (N, D), state (h,) -> the next state, and no attention weights."""
        (h,) = state
        return (self.step_forward(x, h),), None

    def gates(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> dict[str, Tensor]:
        """The values of one step that the figures draw: name -> (N, H)."""
        (h,) = state
        _, cache = gru_step_forward(x, h, self.Wx, self.Wh, self.b)
        rz, n, _ = cache[2]
        r, z = rz.chunk(2, dim=1)
        return {"reset gate r": r, "update gate z": z, "new content n": n}
