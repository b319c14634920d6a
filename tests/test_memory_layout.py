"""The numbers are right for every memory layout of a tensor. A tensor that is changed in place between the forward and
the backward pass gives an error."""

import functools
import shutil

import pytest
import torch
from functorch.compile import make_boxed_func
from helpers import PREFIXES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cells import FUNCTIONS, make_module, sequence_arguments
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager

from rnn_lstm_captioning.cells import interface
from rnn_lstm_captioning.cells.arithmetic import addmm, matmul
from rnn_lstm_captioning.cells.layers import Affine, WordEmbedding
from rnn_lstm_captioning.cells.losses import projected_softmax_loss, temporal_softmax_loss

LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.clone() if x.dim() < 2 else x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "a column": lambda x: torch.stack([x, x + 100], dim=-1)[..., 0],
    "an offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "expanded rows": lambda x: x[:1].expand_as(x),
    "one number": lambda x: x.flatten()[0].expand_as(x),
    "reversed in memory": lambda x: x.flip(0).contiguous().flip(0),
}
layouts = st.sampled_from(sorted(LAYOUTS))


def in_layouts(arguments, names):
    """The arguments in the given layouts, and the same values in contiguous tensors."""
    laid_out = {key: LAYOUTS[name](value) for (key, value), name in zip(arguments.items(), names)}
    return laid_out, {key: value.clone(memory_format=torch.contiguous_format) for key, value in laid_out.items()}


@given(st.tuples(*[st.integers(1, 9)] * 3), layouts, layouts, layouts, st.booleans())
@settings(max_examples=150)
def test_products_are_right_for_every_layout(sizes, a_layout, b_layout, c_layout, is_bias):
    M, K, P = sizes
    a, b = LAYOUTS[a_layout](torch.randn(M, K)), LAYOUTS[b_layout](torch.randn(K, P))
    c = LAYOUTS[c_layout](torch.randn(P) if is_bias else torch.randn(M, P))
    with torch.no_grad():
        torch.testing.assert_close(matmul(a, b), torch.matmul(a, b), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(addmm(c, a, b), c + torch.matmul(a, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make, forward, backward, cell", FUNCTIONS)
@given(dims=st.tuples(*[st.integers(1, 4)] * 6), names=st.lists(layouts, min_size=8, max_size=8))
@settings(max_examples=25)
def test_results_and_gradients_are_right_for_every_layout_of_every_argument(make, forward, backward, cell, dims, names):
    arguments = {key: value.float() for key, value in make(cell, dims).items()}
    laid_out, contiguous = in_layouts(arguments, names)
    with torch.no_grad():  # without autograd, the products take the fast path
        *results, cache = forward(**laid_out)
        *expected, expected_cache = forward(**{key: value.double() for key, value in contiguous.items()})
    for found, right in zip(results, expected):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-4)
    upstream = [torch.randn_like(result) for result in results]
    gradients = backward(*[LAYOUTS[names[0]](gradient) for gradient in upstream], cache)
    right = backward(*[LAYOUTS[names[0]](gradient).double() for gradient in upstream], expected_cache)
    for name, found, wanted in zip(arguments, gradients, right):
        torch.testing.assert_close(
            found.double(), wanted, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"d{name}: {m}"
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", PREFIXES)
def test_modules_are_right_for_every_layout_of_their_weights(cell, layout):
    module = make_module(cell, 4, 5).float()
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, torch.nn.Parameter(LAYOUTS[layout](parameter.detach())))
    arguments = sequence_arguments(cell, (3, 4, 4, 5, 2, 2))
    x, image = (value.float() for value in list(arguments.values())[:2])
    found = module(x, image)
    torch.testing.assert_close(found.double(), module.double()(x.double(), image.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_are_right_for_every_layout_of_their_weights(layout):
    affine, table, arrange = Affine(4, 5), WordEmbedding(7, 4), LAYOUTS[layout]
    affine.weight, affine.b = (torch.nn.Parameter(arrange(p.detach())) for p in (affine.weight, affine.b))
    table.W_embed = torch.nn.Parameter(arrange(table.W_embed.detach()))
    y = arrange(torch.randint(0, 7, (2, 3)))
    x = table(y)
    torch.testing.assert_close(x, table.W_embed[y])
    torch.testing.assert_close(affine(x), x @ affine.W + affine.b)
    h, W, b = (arrange(torch.randn(s)).requires_grad_() for s in ((2, 3, 5), (5, 7), (7,)))
    plain = temporal_softmax_loss(h @ W + b, y, 0)
    torch.testing.assert_close(projected_softmax_loss(h, y, W, b, 0), plain)
    ours = torch.autograd.grad(projected_softmax_loss(h, y, W, b, 0), [h, W, b])
    for found, right in zip(ours, torch.autograd.grad(plain, [h, W, b])):
        torch.testing.assert_close(found, right)


# ------------------------------------------------------------------- changes between the two passes


@pytest.mark.parametrize("cell", PREFIXES)
def test_a_change_in_place_before_the_backward_pass_is_an_error(cell):
    for name in ("x", "image", "Wx", "Wh", "b"):
        module = make_module(cell, 4, 5).float()
        arguments = sequence_arguments(cell, (3, 4, 4, 5, 2, 2))
        x, image = (value.float() for value in list(arguments.values())[:2])
        h = module(x, image)
        with torch.no_grad():
            {"x": x, "image": image, **dict(module.named_parameters())}[name].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            h.sum().backward()


def test_a_change_in_place_is_an_error_for_the_layers_too():
    affine, x = Affine(4, 5), torch.randn(2, 4)
    for forward, changed in (
        (lambda: affine(x), affine.weight),
        (lambda: projected_softmax_loss(affine(x)[:, None], torch.ones(2, 1).long(), affine.W.T, x[0]), affine.weight),
    ):
        result = forward().sum()
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@pytest.mark.parametrize("cell", PREFIXES)
def test_the_gradient_of_a_gradient_is_refused(cell):
    module = make_module(cell, 4, 5)
    x, image = list(sequence_arguments(cell, (3, 4, 4, 5, 2, 2)).values())[:2]
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="leave out create_graph=True"):
        torch.autograd.grad(module(x, image).sum(), x, create_graph=True)


# ------------------------------------------------------------------------------------ the compiler


@pytest.mark.parametrize("cell", PREFIXES)
def test_torch_compile_gives_the_same_numbers(cell):
    """The backend runs the graphs that inductor would compile in half a minute, which is too long for a test."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    module = make_module(cell, 4, 5).float()
    x, image = (value.float() for value in list(sequence_arguments(cell, (3, 2, 4, 5, 2, 2)).values())[:2])
    expected = module(x, image)
    gradients = torch.autograd.grad(expected.sum(), list(module.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, image), expected, rtol=1e-4, atol=1e-5)
    found = compiled(x, image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, right in zip(torch.autograd.grad(found.sum(), list(module.parameters())), gradients):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
    # inductor needs constant weights for mkldnn
    assert graphs and not any("mkldnn" in code for code in graphs)


def step_of(module, T, N, dtype):
    """A training step on random numbers: the result and all gradients."""
    shapes = [(N, T, 4), (N, 5, 2, 2) if module.uses_grid else (N, 5), (N, T, 5)]
    generator = torch.Generator().manual_seed(T + N)
    x, image, dh = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    leaves = [x.requires_grad_(), image.requires_grad_(), *module.parameters()]
    h = module(x, image)
    return [h, *torch.autograd.grad(h, leaves, dh.to(h.dtype))]


@pytest.mark.parametrize("cell", PREFIXES)
def test_a_compiled_cell_gives_the_same_numbers_and_is_compiled_once_per_length(cell, monkeypatch):
    """With the compiler's first half; its second half, the C++ compiler, is in the next test."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compile_all = functools.cache(lambda function: torch.compile(function, fullgraph=True, backend=count))
    monkeypatch.setattr(interface, "_compile", compile_all)
    torch._dynamo.reset()
    module = make_module(cell, 4, 5).float()
    for T, N in [(2, 4), (2, 6), (1, 4), (2, 5), (1, 9)]:
        module.compiled = False
        wanted = step_of(module, T, N, torch.float32)
        module.compiled = True
        for found, right in zip(step_of(module, T, N, torch.float32), wanted):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    assert 4 <= len(graphs) <= 6  # two functions, two lengths; and both again when a second batch size comes
    with torch.autocast("cpu", torch.bfloat16):
        assert step_of(module, 1, 4, torch.float32)[0].dtype == torch.bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_cell_compiles_to_machine_code(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    module = make_module("rnn", 4, 5).double()
    wanted = step_of(module, 2, 3, torch.float64)
    module.compiled = True
    for found, right in zip(step_of(module, 2, 3, torch.float64), wanted):
        torch.testing.assert_close(found, right)
