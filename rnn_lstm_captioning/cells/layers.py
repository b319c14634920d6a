"""The layers around the cell: word vectors, affine maps, batch normalisation."""

import torch
from torch import Tensor, nn

from .arithmetic import addmm, matmul
from .autograd import at_autocast_precision, first_derivative_only


class WordEmbedding(nn.Module):
    """A table of word vectors.

    Parameter: W_embed (vocab_size, embed_size), drawn from N(0, 1). Wx is scaled by 1/sqrt(embed_size),
    so that a word has as much influence on a new cell as the hidden state.
    """

    def __init__(self, vocab_size: int, embed_size: int) -> None:
        super().__init__()
        self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size))

    def forward(self, words: Tensor) -> Tensor:
        """words (N, T) or (N,), int64 in [0, V) -> word vectors (N, T, D) or (N, D). Raises: TypeError, IndexError."""
        if not isinstance(words, Tensor) or words.dtype != torch.int64:
            raise TypeError(f"words must be an int64 torch.Tensor, got {getattr(words, 'dtype', type(words).__name__)}")
        return _EmbeddingFunction.apply(words, self.W_embed)


class _EmbeddingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, words, W_embed):
        ctx.save_for_backward(words)
        ctx.vocab_size = len(W_embed)
        # x = the row of W_embed with the word's index                                   (EMB-1)
        return torch.embedding(W_embed, words)  # (..., D)

    @staticmethod
    @first_derivative_only
    def backward(ctx, dx):
        (words,) = ctx.saved_tensors
        # dW_embed[word] = sum of dx over all positions of the word                      (EMB-2)
        # (added in a fixed order, which index_put_ does not guarantee)
        dW_embed = torch.ops.aten.embedding_dense_backward(dx, words, ctx.vocab_size, -1, False)  # (V, D)
        return None, dW_embed


class Affine(nn.Module):
    """An affine map of the last dimension, x W + b.

    Parameters: weight (out_dim, in_dim), which is W transposed, and b (out_dim,), uniform in +-1/sqrt(in_dim); all as
    in nn.Linear, which the course uses here.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        W = torch.empty(in_dim, out_dim).uniform_(-1, 1) / in_dim**0.5  # drawn as before format 3
        self.weight = nn.Parameter(W.T.contiguous())
        self.b = nn.Parameter(torch.empty(out_dim).uniform_(-1, 1) / in_dim**0.5)

    @property
    def W(self) -> Tensor:
        """W (in_dim, out_dim), in the memory of ``weight``."""
        return self.weight.T

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f"{prefix}W" in state_dict:  # files of format 1 and 2 hold W
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}W").T.contiguous()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
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
        # dx = dy W^T, needed only if x is trained too                                   (AFF-2)
        dx = matmul(dy, W.T) if ctx.needs_input_grad[0] else None  # (rows, in)
        # dW = x^T dy     db = sum over the rows of dy                                   (AFF-3)
        return dx, matmul(x.T, dy), dy.sum(0)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that also accepts a batch of one, which has no variance: it uses the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C) -> (N, C)."""
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)
