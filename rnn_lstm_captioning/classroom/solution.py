"""A right solution, as a learner would write it: plain numpy, step by step, nothing fast. The puzzles are made from it,
and so are the planted mistakes of the tests."""
# ruff: noqa: D103

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def tanh_forward(a):
    y = np.tanh(a)
    return y, y


def tanh_backward(dy, y):
    return dy * (1 - y**2)


def sigmoid_forward(a):
    y = sigmoid(a)
    return y, y


def sigmoid_backward(dy, y):
    return dy * y * (1 - y)


def softmax_forward(a):
    y = softmax(a)
    return y, y


def softmax_backward(dy, y):
    return y * (dy - (y * dy).sum(axis=1, keepdims=True))


def affine_forward(x, W, b):
    return x.dot(W) + b, (x, W)


def affine_backward(dy, cache):
    x, W = cache
    return dy.dot(W.T), x.T.dot(dy), dy.sum(axis=0)


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    a = x.dot(Wx) + prev_h.dot(Wh) + b
    next_h = np.tanh(a)
    return next_h, (x, prev_h, Wx, Wh, next_h, a)


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h, a = cache
    da = dnext_h * (1 - next_h**2)
    dx = da.dot(Wx.T)
    dprev_h = da.dot(Wh.T)
    dWx = x.T.dot(da)
    dWh = prev_h.T.dot(da)
    db = da.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    h = np.zeros((N, T, h0.shape[1]))
    cache = []
    prev_h = h0
    for t in range(T):
        prev_h, step = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        h[:, t] = prev_h
        cache.append(step)
    return h, cache


def rnn_backward(dh, cache):
    N, T, H = dh.shape
    dx = np.zeros((N, T, cache[0][0].shape[1]))
    dWx, dWh, db = np.zeros_like(cache[0][2]), np.zeros_like(cache[0][3]), np.zeros(H)
    dprev_h = np.zeros((N, H))
    for t in reversed(range(T)):
        dx[:, t], dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dh[:, t] + dprev_h, cache[t])
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dprev_h, dWx, dWh, db


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    H = prev_h.shape[1]
    a = x.dot(Wx) + prev_h.dot(Wh) + b
    i = sigmoid(a[:, :H])
    f = sigmoid(a[:, H : 2 * H])
    o = sigmoid(a[:, 2 * H : 3 * H])
    g = np.tanh(a[:, 3 * H :])
    next_c = f * prev_c + i * g
    next_h = o * np.tanh(next_c)
    return next_h, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    tanh_c = np.tanh(next_c)
    do = dnext_h * tanh_c
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)
    di = dc * g
    df = dc * prev_c
    dg = dc * i
    dprev_c = dc * f
    da = np.hstack([di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)])
    return da.dot(Wx.T), da.dot(Wh.T), dprev_c, x.T.dot(da), prev_h.T.dot(da), da.sum(axis=0)


def lstm_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    h = np.zeros((N, T, h0.shape[1]))
    prev_h, prev_c, cache = h0, np.zeros_like(h0), []
    for t in range(T):
        prev_h, prev_c, step = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b)
        h[:, t] = prev_h
        cache.append(step)
    return h, cache


def lstm_backward(dh, cache):
    N, T, H = dh.shape
    dx = np.zeros((N, T, cache[0][0].shape[1]))
    dWx, dWh, db = np.zeros_like(cache[0][3]), np.zeros_like(cache[0][4]), np.zeros(4 * H)
    dprev_h, dprev_c = np.zeros((N, H)), np.zeros((N, H))
    for t in reversed(range(T)):
        dx[:, t], dprev_h, dprev_c, dWx_t, dWh_t, db_t = lstm_step_backward(dh[:, t] + dprev_h, dprev_c, cache[t])
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dprev_h, dWx, dWh, db


def softmax(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def gru_step_forward(x, prev_h, Wx, Wh, b):
    H = prev_h.shape[1]
    p = x.dot(Wx) + b
    u = prev_h.dot(Wh)
    r = sigmoid(p[:, :H] + u[:, :H])
    z = sigmoid(p[:, H : 2 * H] + u[:, H : 2 * H])
    u_n = u[:, 2 * H :]
    n = np.tanh(p[:, 2 * H :] + r * u_n)
    next_h = (1 - z) * n + z * prev_h
    return next_h, (x, prev_h, Wx, Wh, r, z, n, u_n)


def gru_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, r, z, n, u_n = cache
    dz = dnext_h * (prev_h - n)
    dn = dnext_h * (1 - z)
    da_n = dn * (1 - n**2)
    dr = da_n * u_n
    da_r = dr * r * (1 - r)
    da_z = dz * z * (1 - z)
    dp = np.hstack([da_r, da_z, da_n])
    du = np.hstack([da_r, da_z, da_n * r])
    dprev_h = du.dot(Wh.T) + dnext_h * z
    dx = dp.dot(Wx.T)
    dWx = x.T.dot(dp)
    dWh = prev_h.T.dot(du)
    db = dp.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def gru_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    h = np.zeros((N, T, h0.shape[1]))
    prev_h, cache = h0, []
    for t in range(T):
        prev_h, step = gru_step_forward(x[:, t], prev_h, Wx, Wh, b)
        h[:, t] = prev_h
        cache.append(step)
    return h, cache


def gru_backward(dh, cache):
    N, T, H = dh.shape
    dx = np.zeros((N, T, cache[0][0].shape[1]))
    dWx, dWh, db = np.zeros_like(cache[0][2]), np.zeros_like(cache[0][3]), np.zeros(3 * H)
    dprev_h = np.zeros((N, H))
    for t in reversed(range(T)):
        dx[:, t], dprev_h, dWx_t, dWh_t, db_t = gru_step_backward(dh[:, t] + dprev_h, cache[t])
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dprev_h, dWx, dWh, db


def dot_product_attention(prev_h, A):
    N, H, gh, gw = A.shape
    regions = A.reshape(N, H, gh * gw)
    scores = np.einsum("nh,nhg->ng", prev_h, regions) / np.sqrt(H)
    w = softmax(scores)
    attn = np.einsum("ng,nhg->nh", w, regions)
    return attn, w.reshape(N, gh, gw)


def attention_step_forward(x, prev_h, prev_c, attn, Wx, Wh, Wattn, b):
    a = x.dot(Wx) + prev_h.dot(Wh) + attn.dot(Wattn) + b
    i, f, o, g = np.split(a, 4, axis=1)
    i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
    next_c = f * prev_c + i * g
    next_h = o * np.tanh(next_c)
    return next_h, next_c, (x, prev_h, prev_c, attn, Wx, Wh, Wattn, i, f, o, g, next_c)


def attention_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, attn, Wx, Wh, Wattn, i, f, o, g, next_c = cache
    step = (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)
    dx, dprev_h, dprev_c, dWx, dWh, db = lstm_step_backward(dnext_h, dnext_c, step)
    tanh_c = np.tanh(next_c)
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)
    da = np.hstack(
        [dc * g * i * (1 - i), dc * prev_c * f * (1 - f), dnext_h * tanh_c * o * (1 - o), dc * i * (1 - g**2)]
    )
    return dx, dprev_h, dprev_c, da.dot(Wattn.T), dWx, dWh, attn.T.dot(da), db


def attention_forward(x, A, Wx, Wh, Wattn, b):
    N, T, D = x.shape
    h0 = A.mean(axis=(2, 3))
    h = np.zeros((N, T, h0.shape[1]))
    prev_h, prev_c, cache = h0, h0, []
    for t in range(T):
        attn, w = dot_product_attention(prev_h, A)
        query = prev_h
        prev_h, prev_c, step = attention_step_forward(x[:, t], prev_h, prev_c, attn, Wx, Wh, Wattn, b)
        h[:, t] = prev_h
        cache.append((step, query, w))
    return h, (A, cache)


def attention_backward(dh, cache):
    A, steps = cache
    N, T, H = dh.shape
    G = A.shape[2] * A.shape[3]
    regions = A.reshape(N, H, G)
    dregions = np.zeros_like(regions)
    first = steps[0][0]
    dx = np.zeros((N, T, first[0].shape[1]))
    dWx, dWh, dWattn, db = (np.zeros_like(w) for w in (first[4], first[5], first[6], np.zeros(4 * H)))
    dprev_h, dprev_c = np.zeros((N, H)), np.zeros((N, H))
    for t in reversed(range(T)):
        step, query, w = steps[t]
        w = w.reshape(N, G)
        found = attention_step_backward(dh[:, t] + dprev_h, dprev_c, step)
        dx[:, t], dprev_h, dprev_c, dattn = found[:4]
        dWx, dWh, dWattn, db = dWx + found[4], dWh + found[5], dWattn + found[6], db + found[7]
        dw = np.einsum("nh,nhg->ng", dattn, regions)
        ds = w * (dw - (w * dw).sum(axis=1, keepdims=True)) / np.sqrt(H)
        dprev_h = dprev_h + np.einsum("ng,nhg->nh", ds, regions)
        dregions += np.einsum("ng,nh->nhg", w, dattn)
        dregions += np.einsum("ng,nh->nhg", ds, query)
    dregions += ((dprev_h + dprev_c) / G)[:, :, None]
    return dx, dregions.reshape(A.shape), dWx, dWh, dWattn, db


def temporal_softmax_loss(x, y, ignore_index=None):
    N, T, V = x.shape
    rows, words = x.reshape(N * T, V), y.reshape(N * T)
    probs = softmax(rows)
    losses = -np.log(probs[np.arange(N * T), words])
    if ignore_index is not None:
        losses = losses * (words != ignore_index)
    return losses.sum() / N
