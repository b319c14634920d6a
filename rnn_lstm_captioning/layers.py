"""The layers around the cell: word vectors, affine maps, batch normalisation, and the temporal softmax loss."""

from contextlib import contextmanager

import torch
from torch import nn

from .cells.arithmetic import addmm, matmul
from .cells.autograd import at_autocast_precision, first_derivative_only

CHUNK = 2**21  # scores held at a time: 8 MB in float32,
ROWS = 128  # but of no fewer rows than this: every chunk adds to all of dW


class WordEmbedding(nn.Module):
    """A table of word vectors.

    Parameter: W_embed (vocab_size, embed_size), drawn from N(0, 1), so that a cell's gates feel the
    word (their weights are scaled by 1/sqrt(embed_size)) as much as they feel the hidden state.
    """

    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size))

    def forward(self, words):
        """words (N, T) or (N,), int64 in [0, V) -> word vectors (N, T, D) or (N, D)."""
        return _EmbeddingFunction.apply(words, self.W_embed)


class _EmbeddingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, words, W_embed):
        ctx.save_for_backward(words)
        ctx.vocab_size = len(W_embed)
        # x = the row of W_embed that belongs to the word                                (EMB-1)
        return torch.embedding(W_embed, words)  # (..., D)

    @staticmethod
    @first_derivative_only
    def backward(ctx, dx):
        (words,) = ctx.saved_tensors
        # dW_embed[word] = sum of dx over all places where the word stands               (EMB-2)
        # (added up in a fixed order, which index_put_ does not promise)
        dW_embed = torch.ops.aten.embedding_dense_backward(dx, words, ctx.vocab_size, -1, False)  # (V, D)
        return None, dW_embed


class Affine(nn.Module):
    """An affine map of the last dimension, x W + b.

    Parameters: W (in_dim, out_dim) and b (out_dim,), uniform in +-1/sqrt(in_dim), as nn.Linear's are.
    """

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_dim, out_dim).uniform_(-1, 1) / in_dim**0.5)
        self.b = nn.Parameter(torch.empty(out_dim).uniform_(-1, 1) / in_dim**0.5)

    def forward(self, x):
        """x (..., in_dim) -> (..., out_dim)."""
        y = _AffineFunction.apply(*at_autocast_precision(x.flatten(0, -2), self.W, self.b))
        return y.unflatten(0, x.shape[:-1])


class _AffineFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        # y = x W + b                                                                    (AFF-1)
        return addmm(b, x, W)  # (rows, out)

    @staticmethod
    @first_derivative_only
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        # dx = dy W^T, only where the features are trained too                           (AFF-2)
        dx = matmul(dy, W.T) if ctx.needs_input_grad[0] else None  # (rows, in)
        # dW = x^T dy     db = sum over the rows of dy                                   (AFF-3)
        return dx, matmul(x.T, dy), dy.sum(0)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that can take a batch of one: it has no variance, so the running statistics serve."""

    def forward(self, x):
        """x (N, C) -> (N, C)."""
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)


@contextmanager
def evaluating(module):
    """The module in eval mode, without gradients; afterwards it is in the mode it was in before."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def temporal_softmax_loss(x, y, ignore_index=None):
    """Cross-entropy of every word, summed over time and averaged over the minibatch.

    Args: x (N, T, V), unnormalised scores of any floating dtype (16-bit ones are added up in
        float32); y (N, T), int64, the right words in [0, V); positions where y == ignore_index add
        neither loss nor gradient.
    Returns: scalar, in nats per caption. It is 0 if every position is ignored.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError("x must be a floating-point torch.Tensor of shape (N, T, V)")
    if not isinstance(y, torch.Tensor) or y.dtype != torch.int64:
        raise TypeError("y must be an int64 torch.Tensor of shape (N, T)")
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, T, V)")
    if y.shape != x.shape[:2]:
        raise ValueError(f"y has shape {tuple(y.shape)}, wanted (N, T) = {tuple(x.shape[:2])}")
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    words = y.flatten()
    scored = torch.ones_like(words, dtype=torch.bool) if ignore_index is None else words != ignore_index
    # loss = 1/N sum over n and t of -log p(y_nt), without the ignored positions        (LOSS-2)
    return _SummedLoss.apply(x.flatten(0, 1), words.where(scored, 0), scored) / len(x)


def word_losses(x, y):
    """-log p(y) of words y (M,) with scores x (M, V): (M,), and log p(v) of all words (M, V) for the way back."""
    # -log p(y) = log sum over v of exp(x_v) - x_y                                      (LOSS-1)
    log_probs = torch.log_softmax(x, dim=1)  # (M, V)
    return -log_probs.gather(1, y.unsqueeze(1)).squeeze(1), log_probs


def word_losses_backward(log_probs, y, out=None):
    """The gradient (M, V) of the sum of the :func:`word_losses` in the scores; out may be log_probs."""
    # dx_v = p(v) - [v = y]                                                             (LOSS-3)
    dx = torch.exp(log_probs, out=out)
    dx[torch.arange(len(y), device=y.device), y] -= 1
    return dx


class _SummedLoss(torch.autograd.Function):
    """The summed loss of words y (M,) with scores x (M, V), where they are scored (M,)."""

    @staticmethod
    def forward(ctx, x, y, scored):
        losses, log_probs = word_losses(x, y)
        ctx.save_for_backward(log_probs, y, scored)
        return losses.where(scored, 0).sum()

    @staticmethod
    @first_derivative_only
    def backward(ctx, dloss):
        log_probs, y, scored = ctx.saved_tensors
        dx = word_losses_backward(log_probs, y) * dloss
        return dx.where(scored.unsqueeze(1), 0), None, None  # (M, V)


def projected_softmax_loss(h, y, W, b, ignore_index=None):
    """``temporal_softmax_loss(h @ W + b, y, ignore_index)``, never holding all (N, T, V) scores.

    Ignored positions are dropped before the matmul; the rest is scored in chunks, whose gradients
    are taken at once, so that the scores are needed neither twice nor later.

    Args: h (N, T, H), y (N, T) int64, W (H, V), b (V,). Returns: scalar, in nats per caption.
    """
    rows, words = h.flatten(0, 1), y.flatten()  # (N * T, H), (N * T,)
    if ignore_index is not None:
        scored = (words != ignore_index).nonzero().squeeze(1)
        rows, words = rows.index_select(0, scored), words[scored]
    return _ProjectedLoss.apply(rows, words, W, b, torch.is_grad_enabled()) / len(h)


class _ProjectedLoss(torch.autograd.Function):
    """The summed loss of rows h (M, H) with words y (M,)."""

    @staticmethod
    def forward(ctx, h, y, W, b, with_gradients):
        ctx.save_for_backward(h, W, b)  # so that autograd notices if one of them is changed before the backward pass
        total = torch.zeros((), dtype=W.dtype, device=W.device)
        if with_gradients:
            dh, dW, db = ctx.gradients = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
        W_used, b_used = W.to(h.dtype), b.to(h.dtype)  # under autocast, h comes in bf16
        step = max(ROWS, CHUNK // W.shape[1])
        for start in range(0, len(h), step):
            rows = slice(start, start + step)
            scores = addmm(b_used, h[rows], W_used)  # (rows, V)
            x = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
            losses, log_probs = word_losses(x, y[rows])
            total += losses.sum()
            if with_gradients:
                dscores = word_losses_backward(log_probs, y[rows], out=log_probs).to(scores.dtype)  # (rows, V)
                dh[rows] = matmul(dscores, W_used.T)
                dW += matmul(h[rows].T, dscores)
                db += dscores.sum(0)
        return total

    @staticmethod
    @first_derivative_only
    def backward(ctx, dloss):
        ctx.saved_tensors  # noqa: B018
        dh, dW, db = ctx.gradients
        return dh * dloss, None, dW * dloss, db * dloss, None
