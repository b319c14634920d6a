"""The temporal softmax loss, from scores, or from hidden states and a projection to scores."""

import torch
from torch import Tensor

from .arithmetic import addmm, matmul
from .autograd import first_derivative_only

CHUNK = 2**21  # scores in memory at a time: 8 MB in float32,
ROWS = 128  # but at least this many rows in a chunk, because every chunk adds to all of dW


def temporal_softmax_loss(x: Tensor, y: Tensor, ignore_index: int | None = None) -> Tensor:
    """Cross-entropy of every word, summed over time and averaged over the minibatch.

    Args: x (N, T, V), unnormalised scores of any floating dtype (16-bit scores are added
        in float32); y (N, T), int64, the target words in [0, V); positions where y == ignore_index add
        neither loss nor gradient.
    Returns: scalar, in nats per caption. It is 0 if every position is ignored.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError("x must be a floating-point torch.Tensor of shape (N, T, V)")
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, T, V)")
    _check_words(y, x.shape[:2], ignore_index)
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    words = y.flatten()
    scored = torch.ones_like(words, dtype=torch.bool) if ignore_index is None else words != ignore_index
    # loss = 1/N sum over n and t of -log p(y_nt), without the ignored positions        (LOSS-2)
    return _SummedLoss.apply(x.flatten(0, 1), words.where(scored, 0), scored) / len(x)


def _check_words(y, shape, ignore_index):
    if not isinstance(y, torch.Tensor) or y.dtype != torch.int64:
        raise TypeError("y must be an int64 torch.Tensor of shape (N, T)")
    if y.shape != shape:
        raise ValueError(f"y has shape {tuple(y.shape)}, wanted (N, T) = {tuple(shape)}")
    if not isinstance(ignore_index, int | None):
        raise TypeError(f"ignore_index is {ignore_index!r}, wanted an int or None")


def word_losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Scores x (M, V), words y (M,) -> -log p(y) (M,), and log p(v) of all words (M, V) for the backward pass."""
    # -log p(y) = log sum over v of exp(x_v) - x_y                                      (LOSS-1)
    log_probs = torch.log_softmax(x, dim=1)  # (M, V)
    return -log_probs.gather(1, y.unsqueeze(1)).squeeze(1), log_probs


def word_losses_backward(log_probs: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """The gradient (M, V) of the summed :func:`word_losses` with respect to the scores; out may be log_probs."""
    # dx_v = p(v) - [v = y]                                                             (LOSS-3)
    dx = torch.exp(log_probs, out=out)
    dx[torch.arange(len(y), device=y.device), y] -= 1
    return dx


class _SummedLoss(torch.autograd.Function):
    """The summed loss of words y (M,) with scores x (M, V), at the positions where scored (M,) is true."""

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


def projected_softmax_loss(h: Tensor, y: Tensor, W: Tensor, b: Tensor, ignore_index: int | None = None) -> Tensor:
    """``temporal_softmax_loss(h @ W + b, y, ignore_index)`` without holding all (N, T, V) scores in memory.

    Ignored positions are dropped before the matmul. The scores of the rest are computed in chunks. The
    gradients of a chunk are computed immediately, so its scores need not be kept.

    Args: h (N, T, H), y (N, T) int64, W (H, V), b (V,). Returns: scalar, in nats per caption.
    Raises: TypeError or ValueError that names the argument which does not fit.
    """
    if h.dim() != 3 or 0 in h.shape:
        raise ValueError(f"h has shape {tuple(h.shape)}, wanted (N, T, H)")
    _check_words(y, h.shape[:2], ignore_index)
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
        total = torch.zeros((), dtype=torch.promote_types(W.dtype, torch.float32), device=W.device)
        if with_gradients:
            dh, dW, db = ctx.gradients = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
        W_used, b_used = W.to(h.dtype), b.to(h.dtype)  # under autocast, h is bf16
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
