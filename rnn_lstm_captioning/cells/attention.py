"""The LSTM with scaled dot-product attention over the image grid: one step, the sequence, and both
backward passes by hand. The equations of the gates are repeated from ``lstm.py``, so that this file
can be read alone.

Shapes: N batch, T time steps, D word-vector size, H hidden size, G = grid_h * grid_w regions of the
image. Weights are (in, out); gate order i, f, o, g. At every step the hidden state is compared with
all G regions, and the weighted mean of the regions is a third input of the gates. Inside a sequence
the image is (N, G, H), with one row A_k for each region, and the time axis comes first.

Sources: attention: Vaswani et al., "Attention Is All You Need" (2017), equation 1, with one query;
over image features: Xu et al., "Show, Attend and Tell" (2015), whose scores come from an MLP.
"""

import torch
from torch import Tensor, nn

from .arithmetic import addmm, empty_blocks, joined, matmul, multiply, sigmoid_gradient, tanh, tanh_gradient
from .autograd import at_autocast_precision
from .interface import RecurrentCell
from .shapes import check_tensors

__all__ = [
    "AttentionLSTM",
    "dot_product_attention",
    "dot_product_attention_backward",
    "attention_step_forward",
    "attention_step_backward",
    "attention_forward",
    "attention_backward",
]

GRID = "N H grid_h grid_w"

# ------------------------------------------------------------------------------------ attention


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over the grid of each image, with one query per image.

    Args: prev_h (N, H), A (N, H, grid_h, grid_w), of one floating dtype.
    Returns: attn (N, H), the weighted mean of the regions, and attn_weights (N, grid_h, grid_w),
        which sum to 1 over each image's grid.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(prev_h=(prev_h, "N H"), A=(A, GRID))
    attn, weights = _attend(prev_h, _as_rows(A))
    return attn, weights.view(len(A), *A.shape[2:])


@torch.no_grad()
def dot_product_attention_backward(
    dattn: Tensor, prev_h: Tensor, A: Tensor, attn_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`dot_product_attention`, given the gradient of its first result.

    Args: dattn (N, H); prev_h (N, H), A (N, H, grid_h, grid_w), attn_weights (N, grid_h, grid_w).
    Returns: dprev_h (N, H), dA (N, H, grid_h, grid_w).
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(
        prev_h=(prev_h, "N H"), A=(A, GRID), dattn=(dattn, "N H"), attn_weights=(attn_weights, "N grid_h grid_w")
    )
    weights = attn_weights.flatten(1)
    dprev_h, du = _attend_backward(dattn, weights, _as_rows(A))
    dregions = _region_gradients(weights[None], dattn[None], du[None], prev_h[None])
    return dprev_h, dregions.transpose(1, 2).reshape(A.shape)


# ------------------------------------------------------------------------------------- one step


def attention_step_forward(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, attn: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, tuple]:
    """One time step, given what the attention returned.

    Args: x (N, D), prev_h (N, H), prev_c (N, H), attn (N, H), Wx (D, 4H), Wh (H, 4H),
        Wattn (H, 4H), b (4H,), all of one floating dtype.
    Returns: next_h (N, H), next_c (N, H), and a cache for :func:`attention_step_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(
        x=(x, "N D"), prev_h=(prev_h, "N H"), prev_c=(prev_c, "N H"), attn=(attn, "N H"),
        Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), Wattn=(Wattn, "H 4H"), b=(b, "4H"),
    )  # fmt: skip
    p = addmm(_project(x, Wx, b), attn, Wattn)  # (N, 4H); for one step, joining Wh and Wattn is not faster
    next_h, next_c, gates = _step(p, prev_h, prev_c, Wh)
    return next_h, next_c, (x, prev_h, attn, gates, Wx, Wh, Wattn)


@torch.no_grad()
def attention_step_backward(dnext_h: Tensor, dnext_c: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of one time step.

    Args: dnext_h (N, H), dnext_c (N, H), the gradients of the loss with respect to the step's two
        results; cache, from the forward.
    Returns: dx (N, D), dprev_h (N, H), dprev_c (N, H), dattn (N, H), dWx (D, 4H), dWh (H, 4H),
        dWattn (H, 4H), db (4H,).
    Raises: TypeError or ValueError if a gradient does not fit.
    """
    x, prev_h, attn, gates, Wx, Wh, Wattn = cache
    check_tensors(prev_h=(prev_h, "N H"), dnext_h=(dnext_h, "N H"), dnext_c=(dnext_c, "N H"))
    hattn, W = torch.cat([prev_h, attn], dim=1), torch.cat([Wh, Wattn])  # (N, 2H), (2H, 4H)
    da = x.new_empty(len(x), Wx.shape[1])
    dhattn, dprev_c = _step_backward(dnext_h, dnext_c, gates, W, out=da)
    dx, dWx, dW, db = _input_and_weight_gradients(da, x, hattn, Wx)
    (dprev_h, dattn), (dWh, dWattn) = dhattn.chunk(2, dim=1), dW.chunk(2)
    return dx, dprev_h, dprev_c, dattn, dWx, dWh, dWattn, db


# --------------------------------------------------------------------------------- the sequence


def attention_forward(x: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor) -> tuple[Tensor, tuple]:
    """The whole sequence; h_0 and c_0 are the mean of A over the grid.

    Args: x (N, T, D), A (N, H, grid_h, grid_w), Wx (D, 4H), Wh (H, 4H), Wattn (H, 4H), b (4H,).
    Returns: h (N, T, H), the hidden states h_1 ... h_T, and a cache for :func:`attention_backward`.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    check_tensors(x=(x, "N T D"), A=(A, GRID), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), Wattn=(Wattn, "H 4H"), b=(b, "4H"))
    regions, W = _as_rows(A), torch.cat([Wh, Wattn])  # (N, G, H), (2H, 4H)
    x = x.transpose(0, 1)  # (T, N, D)
    p = _project(x.flatten(0, 1), Wx, b).unflatten(0, x.shape[:2])  # (T, N, 4H), every step at once
    # h_0 = c_0 = mean over k of A_k                                                     (ATT-1)
    h = c = regions.mean(dim=1)  # (N, H)

    inputs, attentions, steps, hs = [], [], [], []
    for p_t in p.unbind():
        attn, weights = _attend(h, regions)
        hattn = torch.cat([h, attn], dim=1)  # (N, 2H); [h_{t-1}, attn_t] @ [Wh; Wattn] is one matmul
        h, c, gates = _step(p_t, hattn, c, W)
        inputs.append(hattn), attentions.append(weights), steps.append(gates), hs.append(h)
    h = torch.stack(hs)  # (T, N, H)
    return h.transpose(0, 1), (x, A.shape, regions, inputs, attentions, steps, Wx, W)


@torch.no_grad()
def attention_backward(dh: Tensor, cache: tuple) -> tuple[Tensor, ...]:
    """Gradients of the whole sequence: backpropagation through time and through the attention.

    Args: dh (N, T, H), the gradient of the loss with respect to every h_t; cache, from the forward.
    Returns: dx (N, T, D), dA (N, H, grid_h, grid_w), dWx (D, 4H), dWh (H, 4H), dWattn (H, 4H),
        db (4H,).
    Raises: TypeError or ValueError if dh does not fit.
    """
    x, A_shape, regions, inputs, attentions, steps, Wx, W = cache
    (T, N, D), (_, G, H) = x.shape, regions.shape
    check_tensors(x=(x, "T N D"), A=(regions, "N G H"), dh=(dh, "N T H"))
    dh = dh.transpose(0, 1)
    da = empty_blocks(dh, T, N, 4 * H)  # T times (N, 4H), filled from the last step to the first
    dattn, du = [], []  # from the last step to the first, too
    dprev_h = dprev_c = dh.new_zeros(N, H)
    for t in reversed(range(T)):
        # dh_t = dh_t^loss + dh_t^next: h_t is used by the loss and by step t + 1       (ATT-23)
        dhattn, dprev_c = _step_backward(dh[t] + dprev_h, dprev_c, steps[t], W, out=da[t])
        dquery, du_t = _attend_backward(dhattn[:, H:], attentions[t], regions)
        dattn.append(dhattn[:, H:]), du.append(du_t)
        # dh_{t-1}^next = da_t Wh^T + dq: h_{t-1} met the gates, and was the query      (ATT-24)
        dprev_h = dhattn[:, :H] + dquery  # (N, H)
    hattn = torch.stack(inputs)  # (T, N, 2H)
    dregions = _region_gradients(
        torch.stack(attentions), torch.stack(dattn[::-1]), torch.stack(du[::-1]), hattn[:, :, :H]
    )
    # ... and (dh_0 + dc_0) / G, through the mean over the grid                         (ATT-22)
    dregions += ((dprev_h + dprev_c) / G).unsqueeze(1)  # (N, G, H)

    rows = joined(da), x.flatten(0, 1), hattn.flatten(0, 1)  # T * N rows each
    dx, dWx, dW, db = _input_and_weight_gradients(*rows, Wx)
    dWh, dWattn = dW.chunk(2)
    dA = dregions.transpose(1, 2).reshape(A_shape)
    return dx.view(T, N, D).transpose(0, 1), dA, dWx, dWh, dWattn, db


# ------------------------------------- the arithmetic, written once: the step and the sequence use it


def _as_rows(A):
    return A.flatten(2).transpose(1, 2).contiguous()  # (N, G, H), one row for each region


def _attend(prev_h, regions):
    H = prev_h.shape[1]
    # u_k = h_{t-1} . A_k                                                                (ATT-2)
    u = (prev_h.unsqueeze(1) @ regions.transpose(1, 2)).squeeze(1)  # (N, 1, H) @ (N, H, G) -> (N, G)
    # w = softmax(u / sqrt(H)) over the grid                                             (ATT-3)
    weights = torch.softmax(u / H**0.5, dim=1)  # (N, G)
    # attn_t = sum over k of w_k A_k                                                     (ATT-4)
    attn = (weights.unsqueeze(1) @ regions).squeeze(1)  # (N, H)
    return attn, weights


def _attend_backward(dattn, weights, regions):
    H = dattn.shape[1]
    # dw_k = dattn_t . A_k                                                              (ATT-17)
    dweights = (dattn.unsqueeze(1) @ regions.transpose(1, 2)).squeeze(1)  # (N, G)
    # du_k = w_k * (dw_k - sum over j of w_j dw_j) / sqrt(H)                           (ATT-18)
    du = weights * (dweights - (weights * dweights).sum(1, keepdim=True)) / H**0.5  # (N, G)
    # dq = sum over k of du_k A_k                                                       (ATT-19)
    dquery = (du.unsqueeze(1) @ regions).squeeze(1)  # (N, H)
    return dquery, du


def _region_gradients(weights, dattn, du, prev_h):
    # dA_k = sum over t of w_k dattn_t, through the weighted mean, ...                  (ATT-20)
    dregions = weights.permute(1, 2, 0) @ dattn.transpose(0, 1)  # (N, G, T) @ (N, T, H) -> (N, G, H)
    # ... and of du_k h_{t-1}, through the products, ...                                (ATT-21)
    return dregions.baddbmm_(du.permute(1, 2, 0), prev_h.transpose(0, 1))  # (N, G, H)


def _project(x, Wx, b):
    # p_t = x_t Wx + b                                                                   (ATT-5)
    return addmm(b, x, Wx)  # (rows, 4H)


def _step(p, hattn, prev_c, W):
    H = prev_c.shape[1]
    # a_t = p_t + h_{t-1} Wh + attn_t Wattn                                              (ATT-6)
    a = addmm(p, hattn, W)  # (N, 4H)
    # i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)                                 (ATT-7)
    ifo = torch.sigmoid(a[:, : 3 * H])  # (N, 3H)
    i, f, o = ifo.chunk(3, dim=1)  # (N, H) each
    # g = tanh(a_g)                                                                      (ATT-8)
    g = tanh(a[:, 3 * H :])  # (N, H)
    # c_t = f * c_{t-1} + i * g                                                          (ATT-9)
    next_c = torch.addcmul(f * prev_c, i, g)  # (N, H)
    # h_t = o * tanh(c_t)                                                               (ATT-10)
    tanh_c = tanh(next_c)  # (N, H)
    next_h = o * tanh_c  # (N, H)
    return next_h, next_c, (ifo, g, prev_c, tanh_c)


def _step_backward(dh, dc, gates, W, out):
    ifo, g, prev_c, tanh_c = gates
    i, f, o = ifo.chunk(3, dim=1)
    di, df, do, da_g = out.chunk(4, dim=1)
    H = g.shape[1]
    # dc_t = dc_t^next + dh_t * o * (1 - tanh(c_t)^2)                                   (ATT-11)
    dc = dc + tanh_gradient(dh * o, tanh_c)  # (N, H)
    # di = dc_t * g     df = dc_t * c_{t-1}     do = dh_t * tanh(c_t)                   (ATT-12)
    multiply(dc, g, out=di)  # (N, H), and so are the others
    multiply(dc, prev_c, out=df)
    multiply(dh, tanh_c, out=do)
    # da = dgate * gate * (1 - gate) for the three sigmoid gates, in place              (ATT-13)
    sigmoid_gradient(out[:, : 3 * H], ifo, out=out[:, : 3 * H])  # (N, 3H)
    # da_g = dc_t * i * (1 - g^2)                                                       (ATT-14)
    tanh_gradient(dc * i, g, out=da_g)  # (N, H)
    # dh_{t-1} of the gates = da_t Wh^T     dattn_t = da_t Wattn^T                      (ATT-15)
    dhattn = matmul(out, W.T)  # (N, 2H)
    # dc_{t-1}^next = dc_t * f                                                          (ATT-16)
    return dhattn, dc * f


def _input_and_weight_gradients(da, x, hattn, Wx):
    # dx_t = da_t Wx^T                                                                  (ATT-25)
    dx = matmul(da, Wx.T)  # (rows, D)
    # dWx = sum over t of x_t^T da_t: stacked rows turn the sum into one matmul         (ATT-26)
    dWx = matmul(x.T, da)  # (D, 4H)
    # dWh = sum over t of h_{t-1}^T da_t     dWattn = sum over t of attn_t^T da_t       (ATT-27)
    dW = matmul(hattn.T, da)  # (2H, 4H)
    # db = sum over t and the batch of da_t                                             (ATT-28)
    db = da.sum(0)  # (4H,)
    return dx, dWx, dW, db


# ----------------------------------------------------------------------------------- the module


class AttentionLSTM(RecurrentCell):
    """An LSTM layer with attention, whose gradients come from :func:`attention_backward`.

    Parameters: Wx (input_dim, 4 hidden_dim), Wh and Wattn (hidden_dim, 4 hidden_dim), drawn from
    N(0, 1/fan_in); b (4 hidden_dim,), one for the forget gate and zero for the others.
    """

    name, title, prefix, uses_grid = "attn", "LSTM with attention", "attention", True

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, 4 * hidden_dim) / input_dim**0.5)
        self.Wh = nn.Parameter(torch.randn(hidden_dim, 4 * hidden_dim) / hidden_dim**0.5)
        self.Wattn = nn.Parameter(torch.randn(hidden_dim, 4 * hidden_dim) / hidden_dim**0.5)
        self.b = nn.Parameter(torch.zeros(4 * hidden_dim))
        self.b.data[hidden_dim : 2 * hidden_dim] = 1

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        """x (N, T, D), A (N, H, grid_h, grid_w) -> h (N, T, H)."""
        tensors = at_autocast_precision(x, A, self.Wx, self.Wh, self.Wattn, self.b)
        return self.by_hand(attention_forward, attention_backward, *tensors)

    def step_forward(self, x: Tensor, prev_h: Tensor, prev_c: Tensor, attn: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D), prev_h, prev_c and attn (N, H) -> next_h (N, H), next_c (N, H)."""
        tensors = at_autocast_precision(x, prev_h, prev_c, attn, self.Wx, self.Wh, self.Wattn, self.b)
        return attention_step_forward(*tensors)[:2]

    def start(self, image: Tensor) -> tuple[Tensor, ...]:
        """image A (N, H, grid_h, grid_w) -> the state (h, c), both the mean over the grid."""
        mean = image.mean((2, 3))
        return mean, mean

    def step(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """x (N, D), state (h, c), image A -> the next state, and attn_weights (N, grid_h, grid_w)."""
        h, c = state
        attn, attn_weights = dot_product_attention(h, image)
        return self.step_forward(x, h, c, attn), attn_weights

    def gates(self, x: Tensor, state: tuple[Tensor, ...], image: Tensor) -> dict[str, Tensor]:
        """The values of one step that the figures draw: name -> (N, H)."""
        h, c = state
        attn, _ = dot_product_attention(h, image)
        _, next_c, cache = attention_step_forward(x, h, c, attn, self.Wx, self.Wh, self.Wattn, self.b)
        ifo, g, _, _ = cache[3]
        i, f, o = ifo.chunk(3, dim=1)
        return {"input gate i": i, "forget gate f": f, "output gate o": o, "new content g": g, "cell state c": next_c}
