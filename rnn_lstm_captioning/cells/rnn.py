"""The vanilla (Elman) recurrent network: one step, the sequence, and both backward passes by hand.

Shapes: N batch, T time steps, D word-vector size, H hidden size. Weights are (in, out), for row
vectors: ``x @ Wx``. Inside a sequence the time axis comes first, so that one step is one contiguous
block of memory.

Source: Elman, "Finding Structure in Time" (1990); backpropagation through time: Werbos (1990).
"""

import torch
from torch import Tensor, nn

from .arithmetic import addmm, empty_blocks, joined, matmul, tanh, tanh_gradient
from .autograd import at_autocast_precision
from .interface import RecurrentCell
from .shapes import check_tensors

__all__ = [
    "RNN",
    "rnn_step_forward",
    "rnn_step_backward",
    "rnn_forward",
    "rnn_backward",
]

# ------------------------------------------------------------------------------------- one step


def rnn_step_forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """One time step.

    Args: x (N, D), prev_h (N, H), Wx (D, H), Wh (H, H), b (H,), all of one floating dtype.
    Returns: next_h (N, H), and a cache for :func:`rnn_step_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    next_h = _step(_project(x, Wx, b), prev_h, Wh)
    return next_h, (x, prev_h, next_h, Wx, Wh)


@torch.no_grad()
def rnn_step_backward(dnext_h: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of one time step.

    Args: dnext_h (N, H), the gradient of the loss with respect to next_h; cache, from the forward.
    Returns: dx (N, D), dprev_h (N, H), dWx (D, H), dWh (H, H), db (H,).
    Raises: TypeError or ValueError if dnext_h does not fit.
    """
    x, prev_h, next_h, Wx, Wh = cache
    check_tensors(next_h=(next_h, "N H"), dnext_h=(dnext_h, "N H"))
    da = torch.empty_like(next_h)
    dprev_h = _step_backward(dnext_h, next_h, Wh, out=da)
    dx, dWx, dWh, db = _input_and_weight_gradients(da, x, prev_h, Wx)
    return dx, dprev_h, dWx, dWh, db


# --------------------------------------------------------------------------------- the sequence


def rnn_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """The whole sequence.

    Args: x (N, T, D), h0 (N, H), Wx (D, H), Wh (H, H), b (H,), all of one floating dtype.
    Returns: h (N, T, H), the hidden states h_1 ... h_T, and a cache for :func:`rnn_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    x = x.transpose(0, 1)  # (T, N, D)
    p = _project(x.flatten(0, 1), Wx, b).unflatten(0, x.shape[:2])  # (T, N, H), every step at once
    states = [h0]  # states[t] is h_t
    for p_t in p.unbind():
        states.append(_step(p_t, states[-1], Wh))
    h = torch.stack(states[1:])  # (T, N, H)
    return h.transpose(0, 1), (x, states, Wx, Wh)


@torch.no_grad()
def rnn_backward(dh: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of the whole sequence: backpropagation through time.

    Args: dh (N, T, H), the gradient of the loss with respect to every h_t; cache, from the forward.
    Returns: dx (N, T, D), dh0 (N, H), dWx (D, H), dWh (H, H), db (H,).
    Raises: TypeError or ValueError if dh does not fit.
    """
    x, states, Wx, Wh = cache
    T, N, D = x.shape
    check_tensors(h0=(states[0], "N H"), x=(x, "T N D"), dh=(dh, "N T H"))
    dh = dh.transpose(0, 1)
    da = empty_blocks(dh, *dh.shape)  # T times (N, H), filled from the last step to the first
    dprev_h = torch.zeros_like(states[0])
    for t in reversed(range(T)):
        # dh_t = dh_t^loss + dh_t^next: h_t is used by the loss and by step t + 1       (RNN-10)
        dprev_h = _step_backward(dh[t] + dprev_h, states[t + 1], Wh, out=da[t])
    rows = joined(da), x.flatten(0, 1), torch.cat(states[:-1])  # T * N rows each
    dx, dWx, dWh, db = _input_and_weight_gradients(*rows, Wx)
    return dx.view(T, N, D).transpose(0, 1), dprev_h, dWx, dWh, db


# ------------------------------------- the arithmetic, written once: the step and the sequence use it


def _project(x, Wx, b):
    # p_t = x_t Wx + b                                                                   (RNN-1)
    return addmm(b, x, Wx)  # (rows, H)


def _step(p, prev_h, Wh):
    # a_t = p_t + h_{t-1} Wh                                                             (RNN-2)
    a = addmm(p, prev_h, Wh)  # (N, H)
    # h_t = tanh(a_t)                                                                    (RNN-3)
    return tanh(a)  # (N, H)


def _step_backward(dnext_h, next_h, Wh, out):
    # da_t = dh_t * (1 - h_t^2)                                                          (RNN-4)
    da = tanh_gradient(dnext_h, next_h, out=out)  # (N, H)
    # dh_{t-1}^next = da_t Wh^T                                                          (RNN-5)
    return matmul(da, Wh.T)  # (N, H)


def _input_and_weight_gradients(da, x, prev_h, Wx):
    # dx_t = da_t Wx^T                                                                   (RNN-6)
    dx = matmul(da, Wx.T)  # (rows, D)
    # dWx = sum over t of x_t^T da_t: stacked rows turn the sum into one matmul          (RNN-7)
    dWx = matmul(x.T, da)  # (D, H)
    # dWh = sum over t of h_{t-1}^T da_t                                                 (RNN-8)
    dWh = matmul(prev_h.T, da)  # (H, H)
    # db = sum over t and the batch of da_t                                              (RNN-9)
    db = da.sum(0)  # (H,)
    return dx, dWx, dWh, db


# ----------------------------------------------------------------------------------- the module


class RNN(RecurrentCell):
    """A vanilla RNN layer, whose gradients come from :func:`rnn_backward`.

    Parameters: Wx (input_dim, hidden_dim) and Wh (hidden_dim, hidden_dim), drawn from
    N(0, 1/fan_in); b (hidden_dim,), zero.
    """

    name, title, prefix = "rnn", "RNN", "rnn"

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim) / input_dim**0.5)
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim) / hidden_dim**0.5)
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        """x (N, T, D), h0 (N, H) -> h (N, T, H)."""
        tensors = at_autocast_precision(x, h0, self.Wx, self.Wh, self.b)
        return self.by_hand(rnn_forward, rnn_backward, *tensors)

    def step_forward(self, x: Tensor, prev_h: Tensor) -> Tensor:
        """x (N, D), prev_h (N, H) -> next_h (N, H)."""
        return rnn_step_forward(*at_autocast_precision(x, prev_h, self.Wx, self.Wh, self.b))[0]

    def start(self, image: Tensor) -> tuple[Tensor, ...]:
        """image (N, H), which is h_0 -> the state (h,)."""
        return (image,)

    def step(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> tuple[tuple[Tensor, ...], None]:
        """x (N, D), state (h,) -> the next state, and no attention weights."""
        (h,) = state
        return (self.step_forward(x, h),), None
