"""Learners' right solutions in torch, in several styles: fused, einsum, float32, autograd, caches of several types."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    """All inputs side by side, so that one product is enough."""
    joined = torch.cat([x, prev_h, x.new_ones(len(x), 1)], dim=1)
    W = torch.cat([Wx, Wh, b[None]])
    next_h = torch.tanh(joined @ W)
    return [next_h, SimpleNamespace(joined=joined, W=W, next_h=next_h, D=x.shape[1])]


def rnn_step_backward(dnext_h, cache):
    da = dnext_h - dnext_h * cache.next_h.square()
    djoined, dW = da @ cache.W.t(), cache.joined.t() @ da
    D = cache.D
    return [djoined[:, :D], djoined[:, D:-1], dW[:D], dW[D:-1], dW[-1]]


def rnn_forward(x, h0, Wx, Wh, b):
    """In float32, with a list of states."""
    x, h, Wx, Wh, b = (v.float() for v in (x, h0, Wx, Wh, b))
    states = [h]
    for word in x.unbind(1):
        states.append(torch.tanh(word @ Wx + states[-1] @ Wh + b))
    return torch.stack(states[1:], dim=1), {"x": x, "states": states, "weights": (Wx, Wh)}


def rnn_backward(dh, cache):
    x, states, (Wx, Wh) = cache["x"], cache["states"], cache["weights"]
    dh = dh.float()
    carried, das = 0, []
    for t in range(x.shape[1] - 1, -1, -1):
        da = (dh[:, t] + carried) * (1 - states[t + 1] ** 2)
        carried = da @ Wh.T
        das.insert(0, da)
    da = torch.stack(das, dim=1)
    prev = torch.stack(states[:-1], dim=1)
    dWx = torch.einsum("ntd,nth->dh", x, da)
    return torch.einsum("nth,dh->ntd", da, Wx), carried, dWx, torch.einsum("ntk,nth->kh", prev, da), da.sum((0, 1))


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    """autograd computes the backward pass."""
    inputs = [v.clone().requires_grad_() for v in (x, prev_h, prev_c, Wx, Wh, b)]
    with torch.enable_grad():
        x, prev_h, prev_c, Wx, Wh, b = inputs
        i, f, o, g = torch.addmm(b, torch.cat([x, prev_h], 1), torch.cat([Wx, Wh])).chunk(4, dim=1)
        next_c = torch.sigmoid(f) * prev_c + torch.sigmoid(i) * torch.tanh(g)
        next_h = torch.sigmoid(o) * torch.tanh(next_c)
    return next_h, next_c, (inputs, next_h, next_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    inputs, next_h, next_c = cache
    return torch.autograd.grad([next_h, next_c], inputs, [dnext_h, dnext_c])


class Tape:
    def __init__(self, *values):
        self.values = values


def lstm_forward(x, h0, Wx, Wh, b):
    """The input product of all words before the loop; gates as slices."""
    H = h0.shape[1]
    projected = torch.einsum("ntd,dk->ntk", x, Wx) + b
    h, c, hs, tape = h0, h0 * 0, [], []
    for t in range(x.size(1)):
        a = projected[:, t] + h.mm(Wh)
        ifo, g = a[:, : 3 * H].sigmoid(), a[:, 3 * H :].tanh()
        before, c = (h, c), ifo[:, H : 2 * H] * c + ifo[:, :H] * g
        h = ifo[:, 2 * H :] * c.tanh()
        tape.append(Tape(before, ifo, g, c.tanh()))
        hs.append(h)
    return torch.stack(hs, 1), Tape(x, Wx, Wh, tape)


def lstm_backward(dh, cache):
    x, Wx, Wh, tape = cache.values
    H = dh.shape[2]
    dh_next = dc_next = torch.zeros_like(dh[:, 0])
    dx, dWx, dWh, db = torch.empty_like(x), Wx * 0, Wh * 0, Wx[0] * 0
    for t in range(len(tape)).__reversed__():
        (h, c), ifo, g, tanh_c = tape[t].values
        i, f, o = ifo[:, :H], ifo[:, H : 2 * H], ifo[:, 2 * H :]
        dht = dh[:, t] + dh_next
        dct = dc_next + dht * o * (1 - tanh_c * tanh_c)
        slopes = ifo * (1 - ifo)
        da = torch.cat([torch.cat([dct * g, dct * c, dht * tanh_c], 1) * slopes, dct * i * (1 - g * g)], 1)
        dx[:, t], dh_next, dc_next = da @ Wx.T, da @ Wh.T, dct * f
        dWx, dWh, db = dWx + x[:, t].T @ da, dWh + h.T @ da, db + da.sum(0)
    return dx, dh_next, dWx, dWh, db


def gru_step_forward(x, prev_h, Wx, Wh, b):
    """torch's own cell, with transposed weights; autograd computes the backward pass."""
    inputs = [v.clone().requires_grad_() for v in (x, prev_h, Wx, Wh, b)]
    with torch.enable_grad():
        x, prev_h, Wx, Wh, b = inputs
        next_h = torch.gru_cell(x, prev_h, Wx.T, Wh.T, b, torch.zeros_like(b))
    return next_h.detach(), (next_h, inputs)


def gru_step_backward(dnext_h, cache):
    next_h, inputs = cache
    return torch.autograd.grad(next_h, inputs, dnext_h, retain_graph=True)


def gru_forward(x, h0, Wx, Wh, b):
    h, steps = h0, []
    for word in x.unbind(1):
        h, cache = gru_step_forward(word, h, Wx, Wh, b)
        steps.append((h, cache))
    return torch.stack([h for h, _ in steps], dim=1), [cache for _, cache in steps]


def gru_backward(dh, caches):
    dprev_h, dxs, sums = torch.zeros_like(dh[:, 0]), [], 0
    for t in reversed(range(dh.shape[1])):
        dx, dprev_h, *dW = gru_step_backward(dh[:, t] + dprev_h, caches[t])
        dxs.append(dx)
        sums = dW if sums == 0 else [a + b for a, b in zip(sums, dW)]
    return torch.stack(dxs[::-1], dim=1), dprev_h, *sums


def dot_product_attention(prev_h, A):
    """As in the course: batched products of reshaped tensors."""
    N, H, gh, gw = A.shape
    scores = torch.bmm(prev_h.view(N, 1, H), A.view(N, H, -1)).div(H**0.5)
    weights = F.softmax(scores, dim=-1)
    return torch.bmm(A.view(N, H, -1), weights.transpose(1, 2)).squeeze(-1), weights.view(N, gh, gw)


def attention_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    """Without a cache, as in the course: there autograd computes the backward pass."""
    ai, af, ao, ag = torch.split(x @ Wx + prev_h @ Wh + attn @ Wattn + b, prev_h.shape[1], dim=1)
    next_c = torch.sigmoid(af).mul(prev_c).add(torch.sigmoid(ai).mul(torch.tanh(ag)))
    return torch.sigmoid(ao) * torch.tanh(next_c), next_c


def attention_forward(x, A, Wx, Wh, Wattn, b):
    leaves = [v.clone().requires_grad_() for v in (x, A, Wx, Wh, Wattn, b)]
    with torch.enable_grad():
        x, A, Wx, Wh, Wattn, b = leaves
        h = c = A.flatten(2).mean(2)
        hs = []
        for t in range(x.shape[1]):
            attn, _ = dot_product_attention(h, A)
            h, c = attention_step_forward(x[:, t], h, c, attn, Wx, Wh, Wattn, b)
            hs.append(h)
        h = torch.stack(hs, dim=1)
    return h, (h, leaves)


def attention_backward(dh, cache):
    h, leaves = cache
    return torch.autograd.grad(h, leaves, dh, retain_graph=True)


def temporal_softmax_loss(x, y, ignore_index=None):
    ignore = -100 if ignore_index is None else ignore_index
    return F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum", ignore_index=ignore) / x.shape[0]
