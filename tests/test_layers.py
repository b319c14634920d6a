"""The layers around the cells, and the loss: values, gradients, and bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rnn_lstm_captioning import WordEmbedding, temporal_softmax_loss
from rnn_lstm_captioning.cells import losses
from rnn_lstm_captioning.cells.layers import Affine
from rnn_lstm_captioning.cells.losses import projected_softmax_loss
from rnn_lstm_captioning.classroom.gradients import compute_numeric_gradient

sizes = st.integers(1, 6)


@given(N=sizes, T=sizes, V=sizes, ignored=st.booleans())
def test_loss_and_gradient_equal_a_loop_over_words(N, T, V, ignored):
    x = torch.randn(N, T, V, dtype=torch.float64, requires_grad=True)
    y = torch.randint(V, (N, T))
    ignore_index = int(y[0, 0]) if ignored else None
    expected = 0
    for n in range(N):
        for t in range(T):
            if y[n, t] != ignore_index:
                expected = expected - torch.log_softmax(x[n, t], 0)[y[n, t]] / N
    loss = temporal_softmax_loss(x, y, ignore_index)
    assert loss.shape == ()
    torch.testing.assert_close(loss, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    (dx,) = torch.autograd.grad(loss, x)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(dx, torch.autograd.grad(expected, x)[0], rtol=1e-10, atol=1e-12)
    numeric = compute_numeric_gradient(lambda x: temporal_softmax_loss(x, y, ignore_index), x, h=1e-6)
    torch.testing.assert_close(dx, numeric, rtol=1e-6, atol=1e-6)
    assert (dx[y == ignore_index] == 0).all()


def test_loss_of_equal_scores_is_ln_V_per_scored_word():
    y = torch.tensor([[1, 2, 0], [3, 0, 0]])
    loss = temporal_softmax_loss(torch.zeros(2, 3, 5, dtype=torch.float64), y, ignore_index=0)
    assert loss.item() == pytest.approx(3 * math.log(5) / 2, abs=1e-12)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_loss_is_stable_for_huge_scores(scale):
    x = (scale * torch.randn(3, 4, 5)).requires_grad_()
    loss = temporal_softmax_loss(x, torch.randint(5, (3, 4)))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    right = torch.full((1, 1, 3), -1e4, dtype=torch.float64)
    right[0, 0, 1] = 1e4
    assert temporal_softmax_loss(right, torch.tensor([[1]])).item() == 0


def test_an_all_ignored_batch_gives_zero_loss_and_gradient():
    x = torch.randn(2, 3, 4, requires_grad=True)
    loss = temporal_softmax_loss(x, torch.zeros(2, 3, dtype=torch.int64), ignore_index=0)
    loss.backward()
    assert loss.item() == 0 and (x.grad == 0).all()


def test_an_ignore_index_outside_the_vocabulary_is_allowed():
    x = torch.randn(1, 2, 4)
    loss = temporal_softmax_loss(x, torch.tensor([[2, -100]]), ignore_index=-100)
    torch.testing.assert_close(loss, -torch.log_softmax(x[0, 0], 0)[2])


def test_the_loss_names_the_argument_that_does_not_fit():
    x, y = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"y has shape \(3, 2\), wanted \(N, T\) = \(2, 3\)"):
        temporal_softmax_loss(x, y.T)
    with pytest.raises(ValueError, match=r"x has shape \(6, 4\), wanted \(N, T, V\)"):
        temporal_softmax_loss(x.view(6, 4), y)
    with pytest.raises(TypeError, match="y must be an int64"):
        temporal_softmax_loss(x, y.float())
    with pytest.raises(TypeError, match="x must be a floating-point"):
        temporal_softmax_loss(x.long(), y)


def test_word_embedding_looks_words_up_and_sends_gradients_to_them():
    embedding = WordEmbedding(7, 3).double()
    assert embedding.W_embed.shape == (7, 3)
    words = torch.tensor([[1, 5], [5, 5]])
    x = embedding(words)
    assert torch.equal(x, embedding.W_embed[words])
    x.sum().backward()
    assert torch.equal(embedding.W_embed.grad[:, 0], torch.tensor([0, 1, 0, 0, 0, 3, 0], dtype=torch.float64))


def test_word_embedding_starts_with_elements_of_variance_one():
    assert abs(WordEmbedding(2000, 64).W_embed.std().item() - 1) < 0.02


@given(N=sizes, T=sizes, H=sizes, V=sizes, chunk=st.integers(1, 40), ignored=st.booleans())
def test_the_chunked_loss_and_its_gradients_equal_the_plain_ones(N, T, H, V, chunk, ignored):
    h, W, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((N, T, H), (H, V), (V,)))
    y = torch.randint(V, (N, T))
    ignore_index = 0 if ignored else None
    plain = temporal_softmax_loss(h @ W + b, y, ignore_index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK", chunk)
        patch.setattr(losses, "ROWS", 1)
        chunked = projected_softmax_loss(h, y, W, b, ignore_index)
        with torch.no_grad():
            without = projected_softmax_loss(h, y, W, b, ignore_index)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(without, plain, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(3 * plain, (h, W, b))
    for ours, theirs in zip(torch.autograd.grad(3 * chunked, (h, W, b)), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_affine_is_a_linear_layer():
    affine, x = Affine(5, 3).double(), torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(affine(x), nn.functional.linear(x, affine.W.T, affine.b), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(affine, x)
    affine(x).pow(2).sum().backward()
    W, b = (p.detach().clone().requires_grad_() for p in (affine.W, affine.b))
    (x.detach() @ W + b).pow(2).sum().backward()
    torch.testing.assert_close(affine.weight.grad.T, W.grad), torch.testing.assert_close(affine.b.grad, b.grad)
