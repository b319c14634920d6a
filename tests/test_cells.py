"""The cells, compared with PyTorch's, with autograd and with numeric gradients; and how they refuse bad input."""

import functools
import re
import sys

import pytest
import torch
from helpers import MODULES, PREFIXES, function_arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rnn_lstm_captioning.cells as cells
from rnn_lstm_captioning.classroom.gradients import compute_numeric_gradient, rel_error
from rnn_lstm_captioning.classroom.plain_cells import BASICS, FORWARDS
from rnn_lstm_captioning.classroom.plain_passes import forward as plain_forward

sizes = st.integers(1, 5)
dims = st.tuples(sizes, sizes, sizes, sizes, sizes, sizes)  # N, T, D, H, grid_h, grid_w
randn = functools.partial(torch.randn, dtype=torch.float64)


def step_arguments(cell, dims):
    return function_arguments(f"{cell}_step_forward", dims)


def sequence_arguments(cell, dims):
    return function_arguments(f"{cell}_forward", dims)


FUNCTIONS = [
    pytest.param(make, getattr(cells, f"{name}_forward"), getattr(cells, f"{name}_backward"), cell, id=name)
    for cell in PREFIXES
    for name, make in ((f"{cell}_step", step_arguments), (cell, sequence_arguments))
]


@pytest.mark.parametrize("make, forward, backward, cell", FUNCTIONS)
@given(dims=dims)
@settings(max_examples=25)
def test_backward_equals_autograd(make, forward, backward, cell, dims):
    arguments = {name: tensor.requires_grad_() for name, tensor in make(cell, dims).items()}
    *results, cache = forward(**arguments)
    upstream = [torch.randn_like(result) for result in results]
    expected = torch.autograd.grad(results, list(arguments.values()), upstream)
    gradients = backward(*upstream, cache)
    assert not any(gradient.requires_grad for gradient in gradients)
    assert len(gradients) == len(expected)
    for name, ours, theirs in zip(arguments, gradients, expected):
        assert ours.shape == theirs.shape, name
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("make, forward, backward, cell", FUNCTIONS)
@given(dims=dims)
@settings(max_examples=5)
def test_backward_equals_numeric_gradient(make, forward, backward, cell, dims):
    arguments = make(cell, dims)
    *results, cache = forward(**arguments)
    upstream = [torch.randn_like(result) for result in results]
    for name, ours in zip(arguments, backward(*upstream, cache)):

        def loss(value, name=name):
            *results, _ = forward(**(arguments | {name: value}))
            return sum((result * up).sum() for result, up in zip(results, upstream))

        numeric = compute_numeric_gradient(loss, arguments[name], h=1e-6)
        torch.testing.assert_close(ours, numeric, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("make, forward, backward, cell", FUNCTIONS)
def test_backward_does_not_change_its_cache(make, forward, backward, cell):
    *results, cache = forward(**make(cell, (2, 3, 4, 5, 2, 3)))
    upstream = [torch.randn_like(result) for result in results]
    for first, second in zip(backward(*upstream, cache), backward(*upstream, cache)):
        assert torch.equal(first, second)


@given(dims=dims)
@settings(max_examples=25)
def test_attention_backward_equals_autograd(dims):
    N, T, D, H, grid_h, grid_w = dims
    prev_h, A = randn(N, H).requires_grad_(), randn(N, H, grid_h, grid_w).requires_grad_()
    attn, weights = cells.dot_product_attention(prev_h, A)
    dattn = randn(N, H)
    expected = torch.autograd.grad(attn, [prev_h, A], dattn)
    with torch.no_grad():
        gradients = cells.dot_product_attention_backward(dattn, prev_h, A, weights)
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# -------------------------------------------------------------------------- compared with PyTorch's


@given(dims=dims)
@settings(max_examples=25)
def test_rnn_equals_torch(dims):
    N, T, D, H, *_ = dims
    arguments = sequence_arguments("rnn", dims)
    theirs = nn.RNN(D, H, batch_first=True, dtype=torch.float64)
    copy_weights(theirs, arguments["Wx"], arguments["Wh"], arguments["b"])
    expected = theirs(arguments["x"], arguments["h0"][None])[0]
    torch.testing.assert_close(cells.rnn_forward(**arguments)[0], expected, rtol=0, atol=1e-12)


@given(dims=dims)
@settings(max_examples=25)
def test_lstm_and_its_gradients_equal_those_of_torch(dims):
    N, T, D, H, *_ = dims
    arguments = sequence_arguments("lstm", dims)
    i_f_g_o = torch.cat([torch.arange(k * H, (k + 1) * H) for k in (0, 1, 3, 2)])
    theirs = nn.LSTM(D, H, batch_first=True, dtype=torch.float64)
    copy_weights(theirs, *(arguments[name][..., i_f_g_o] for name in ("Wx", "Wh", "b")))
    x = arguments["x"].clone().requires_grad_()
    expected = theirs(x, (arguments["h0"][None], torch.zeros(1, N, H, dtype=torch.float64)))[0]
    h, cache = cells.lstm_forward(**arguments)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-12)
    dh = torch.randn_like(h)
    expected.backward(dh)
    dx, _, dWx, dWh, db = cells.lstm_backward(dh, cache)
    torch.testing.assert_close(dx, x.grad, rtol=1e-10, atol=1e-10)
    for ours, parameter in ((dWx, theirs.weight_ih_l0), (dWh, theirs.weight_hh_l0)):
        torch.testing.assert_close(ours[:, i_f_g_o], parameter.grad.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(db[i_f_g_o], theirs.bias_ih_l0.grad, rtol=1e-10, atol=1e-10)


@given(dims=dims)
@settings(max_examples=25)
def test_gru_and_its_gradients_equal_those_of_torch(dims):
    N, T, D, H, *_ = dims
    arguments = sequence_arguments("gru", dims)
    theirs = nn.GRU(D, H, batch_first=True, dtype=torch.float64)
    copy_weights(theirs, arguments["Wx"], arguments["Wh"], arguments["b"])
    x, h0 = (arguments[name].clone().requires_grad_() for name in ("x", "h0"))
    expected = theirs(x, h0[None])[0]
    h, cache = cells.gru_forward(**arguments)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-12)
    dh = torch.randn_like(h)
    expected.backward(dh)
    right = (x.grad, h0.grad, theirs.weight_ih_l0.grad.T, theirs.weight_hh_l0.grad.T, theirs.bias_ih_l0.grad)
    for ours, gradient in zip(cells.gru_backward(dh, cache), right):
        torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)


@given(dims=dims)
def test_attention_equals_torch(dims):
    N, T, D, H, grid_h, grid_w = dims
    prev_h, A = randn(N, H), randn(N, H, grid_h, grid_w)
    attn, weights = cells.dot_product_attention(prev_h, A)
    rows = A.flatten(2).transpose(1, 2)
    expected = nn.functional.scaled_dot_product_attention(prev_h[:, None], rows, rows)[:, 0]
    torch.testing.assert_close(attn, expected, rtol=0, atol=1e-12)
    assert weights.shape == (N, grid_h, grid_w)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(N, dtype=torch.float64))


@given(dims=dims)
@settings(max_examples=10)
def test_attention_lstm_equals_a_per_gate_loop(dims):
    N, T, D, H, grid_h, grid_w = dims
    arguments = sequence_arguments("attention", dims)
    x, A, Wx, Wh, Wattn, b = arguments.values()
    h = c = A.mean((2, 3))
    for t in range(T):
        attn, _ = cells.dot_product_attention(h, A)
        gate = {
            name: x[:, t] @ Wx[:, k] + h @ Wh[:, k] + attn @ Wattn[:, k] + b[k]
            for name, k in zip("ifog", (slice(j * H, (j + 1) * H) for j in range(4)))
        }
        c = gate["f"].sigmoid() * c + gate["i"].sigmoid() * gate["g"].tanh()
        h = gate["o"].sigmoid() * c.tanh()
        torch.testing.assert_close(cells.attention_forward(**arguments)[0][:, t], h, rtol=0, atol=1e-12)


def copy_weights(theirs, Wx, Wh, b):
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(Wx.T), theirs.weight_hh_l0.copy_(Wh.T)
        theirs.bias_ih_l0.copy_(b), theirs.bias_hh_l0.zero_()


@pytest.mark.parametrize("name", [name for name in FORWARDS if "forward" in name and name not in BASICS])
@given(dims=dims)
@settings(max_examples=10)
def test_the_forward_equals_the_plain_one(name, dims):
    """The plain cells of the checker are written independently, with autograd only."""
    arguments = function_arguments(name, dims)
    *results, _ = getattr(cells, name)(**arguments)
    for found, right in zip(results, plain_forward(name, arguments)):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------- modules


def make_module(cell, D, H):
    return MODULES[cell](D, H).double()


def image_for(cell, N, H):
    return randn(N, H, 2, 3) if MODULES[cell].uses_grid else randn(N, H)


@pytest.mark.parametrize("cell", PREFIXES)
def test_module_trains_through_the_handwritten_backward(cell, monkeypatch):
    N, T, D, H = 3, 4, 5, 6
    module = make_module(cell, D, H)
    x, image = randn(N, T, D).requires_grad_(), image_for(cell, N, H).requires_grad_()
    assert torch.autograd.gradcheck(module, (x, image))
    backward, calls = getattr(cells, f"{cell}_backward"), []
    source = sys.modules[MODULES[cell].__module__]
    monkeypatch.setattr(source, f"{cell}_backward", lambda *a: calls.append(1) or backward(*a))
    module(x, image).sum().backward()
    assert calls == [1]
    plain = getattr(cells, f"{cell}_forward")(x, image, *module.parameters())[0]
    for ours, autograd in zip(
        (p.grad for p in module.parameters()), torch.autograd.grad(plain.sum(), module.parameters())
    ):
        torch.testing.assert_close(ours, autograd, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", PREFIXES)
def test_steps_in_a_loop_equal_the_sequence(cell):
    N, T, D, H = 2, 5, 3, 4
    module, x, image = make_module(cell, D, H), randn(N, T, D), image_for(cell, N, H)
    expected = module(x, image)
    state = module.start(image)
    for t in range(T):
        before = state
        state, attn_weights = module.step(x[:, t], state, image)
        torch.testing.assert_close(state[0], expected[:, t], rtol=0, atol=1e-12)
        assert all(part.shape == (N, H) for part in state)
        if attn_weights is not None:
            torch.testing.assert_close(attn_weights.sum((1, 2)), torch.ones(N, dtype=torch.float64))
        for name, values in module.gates(x[:, t], before, image).items():
            assert values.shape == (N, H), name
            assert "gate" not in name or ((values > 0) & (values < 1)).all(), name


def test_the_gates_explain_the_new_state():
    x, h, c = randn(2, 3), randn(2, 4), randn(2, 4)
    lstm, gru = make_module("lstm", 3, 4), make_module("gru", 3, 4)
    i, f, o, g, next_c = lstm.gates(x, (h, c), h).values()
    torch.testing.assert_close(next_c, f * c + i * g)
    torch.testing.assert_close(lstm.step_forward(x, h, c)[0], o * next_c.tanh())
    _, z, n = gru.gates(x, (h,), h).values()
    torch.testing.assert_close(gru.step_forward(x, h), (1 - z) * n + z * h)


@pytest.mark.parametrize("cell", PREFIXES)
def test_modules_have_the_expected_shapes_and_initial_weights(cell):
    D, H = 300, 200
    module = make_module(cell, D, H)
    weights = {name: p for name, p in module.named_parameters() if name != "b"}
    columns = module.Wx.shape[1]
    assert module.Wx.shape == (D, columns) and columns % H == 0 and module.b.shape == (columns,)
    for name, weight in weights.items():
        assert weight.shape == (D if name == "Wx" else H, columns)
        assert abs(weight.std().item() * len(weight) ** 0.5 - 1) < 0.02, name
    assert set(module.b.tolist()) <= {0.0, 1.0}
    if cell in ("lstm", "attention"):  # the forget gate's biases are one
        assert module.b.view(4, H).sum(1).tolist() == [0, H, 0, 0]
    blocks = {"rnn": 1, "lstm": 4, "gru": 3, "attention": 4}
    assert columns == blocks.get(cell, columns // H) * H


@pytest.mark.parametrize("cell", PREFIXES)
def test_autocast_gives_bf16_states_and_float32_gradients(cell):
    module = make_module(cell, 4, 8).float()
    x, image = torch.randn(2, 3, 4), image_for(cell, 2, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        h = module(x, image)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h.float(), module(x, image), rtol=0.05, atol=0.05)
    h.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_a_finished_graph_is_freed_without_the_garbage_collector():
    import gc
    import weakref

    gc.disable()
    try:
        for cell in PREFIXES:
            h = make_module(cell, 2, 4)(randn(1, 2, 2), image_for(cell, 1, 4))
            alive = weakref.ref(h.grad_fn)
            del h
            assert alive() is None, cell
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------- bad input


def test_bad_arguments_are_named_with_the_wanted_shape():
    good = sequence_arguments("lstm", (2, 3, 4, 5, 1, 1))
    with pytest.raises(ValueError, match=r"Wx has shape \(4, 10\), wanted \(D, 4H\) = \(4, 20\)"):
        cells.lstm_forward(**good | dict(Wx=randn(4, 10)))
    with pytest.raises(ValueError, match=r"h0 has shape \(3, 5\), wanted \(N, H\) = \(2, H\)"):
        cells.lstm_forward(**good | dict(h0=randn(3, 5)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), wanted \(N, T, D\)"):
        cells.lstm_forward(**good | dict(x=randn(2, 4)))
    with pytest.raises(ValueError, match=r"x is empty: its shape is \(2, 0, 4\)"):
        cells.lstm_forward(**good | dict(x=randn(2, 0, 4)))
    with pytest.raises(TypeError, match="Wh has dtype torch.float32, wanted torch.float64 like x"):
        cells.lstm_forward(**good | dict(Wh=good["Wh"].float()))
    with pytest.raises(TypeError, match="x has dtype torch.int64, wanted a floating-point dtype"):
        cells.lstm_forward(**good | dict(x=good["x"].long()))
    with pytest.raises(TypeError, match=r"b must be a torch.Tensor of shape \(4H\), got list"):
        cells.lstm_forward(**good | dict(b=[0.0] * 20))
    with pytest.raises(ValueError, match="Wh is on meta, wanted cpu like x"):
        cells.lstm_forward(**good | dict(Wh=good["Wh"].to("meta")))
    h, cache = cells.lstm_forward(**good)
    with pytest.raises(ValueError, match=r"dh has shape \(2, 5, 3\), wanted \(N, T, H\) = \(2, 3, 5\)"):
        cells.lstm_backward(h.transpose(1, 2), cache)


@pytest.mark.parametrize("make, forward, backward, cell", FUNCTIONS)
def test_every_argument_of_every_function_is_checked(make, forward, backward, cell):
    arguments = make(cell, (2, 3, 4, 5, 2, 2))
    *results, cache = forward(**arguments)
    for name, tensor in arguments.items():
        for bad in (tensor[None], tensor.to("meta")):
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                forward(**arguments | {name: bad})
        with pytest.raises(ValueError, match="has shape .* wanted"):  # a wide x makes Wx too narrow
            forward(**arguments | {name: torch.cat([tensor, tensor], dim=1 if name == "A" else -1)})
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            forward(**arguments | {name: tensor.half() if name != "x" else tensor.int()})
    for k in range(len(results)):
        bad = [result[..., :-1] if j == k else result for j, result in enumerate(results)]
        with pytest.raises(ValueError, match=r"d(next_)?[hc] has shape"):
            backward(*bad, cache)


def test_the_numeric_gradient_of_a_known_function_is_right():
    x = randn(3, 4)
    assert rel_error(compute_numeric_gradient(lambda x: (x**3).sum(), x), 3 * x**2) < 1e-6
    upstream = randn(3, 4)
    assert rel_error(compute_numeric_gradient(lambda x: x**3, x, upstream), 3 * x**2 * upstream) < 1e-6


@pytest.mark.parametrize("cell", PREFIXES)
def test_every_equation_has_its_own_tag(cell):
    """The pages refer to the lines by these tags."""
    with open(sys.modules[MODULES[cell].__module__].__file__, encoding="utf-8") as source:
        tags = re.findall(r"\(([A-Z]+)-(\d+)\)$", source.read(), re.MULTILINE)
    assert len({name for name, _ in tags}) == 1
    assert sorted(int(number) for _, number in tags) == list(range(1, len(tags) + 1))
