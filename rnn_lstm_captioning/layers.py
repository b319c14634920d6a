"""The layers around the cell: word vectors, the vocabulary projection and the temporal softmax loss."""

import torch
from torch import nn


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
        return nn.functional.embedding(words, self.W_embed)


def temporal_softmax_loss(x, y, ignore_index=None):
    """Cross-entropy of every word, summed over time and averaged over the minibatch.

    Args: x (N, T, V), unnormalised scores of any floating dtype; y (N, T), int64, the right words
        in [0, V); positions where y == ignore_index add neither loss nor gradient.
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
    scored = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    # -log p(y) = log sum over v of exp(x_v) - x_y                                       (LOSS-1)
    word_scores = x.gather(2, y.where(scored, 0).unsqueeze(2)).squeeze(2)  # (N, T)
    word_losses = torch.logsumexp(x, dim=2) - word_scores  # (N, T)
    # loss = 1/N sum over n and t of -log p(y_nt), without the ignored positions         (LOSS-2)
    return word_losses.where(scored, 0).sum() / len(x)
