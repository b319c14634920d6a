"""From a picture's features to words, one step at a time, for every cell alike.

A captioner offers two methods: ``begin(features) -> state`` and ``advance(words, state) ->
scores (N, V), state, attn_weights or None``. A state is a tuple of tensors whose first dimension
is the batch, so that rows can be dropped, copied or reordered without knowing the cell.
"""

import torch

from .vocabulary import END, NULL, START, UNK


@torch.no_grad()
def greedy_search(captioner, features, max_length=15):
    """The most probable word at every step, never ``<NULL>``, ``<START>`` or ``<UNK>``.

    Args: features (N, C, grid_h, grid_w).
    Returns: captions int64 (N, max_length), everything after ``<END>`` is ``<NULL>``; and
        attn_weights (N, max_length, grid_h, grid_w), zero after the end, or None without attention.
    """
    N, device = len(features), features.device
    captions = torch.full((N, max_length), NULL, device=device)
    attn_weights = None
    state = captioner.begin(features)
    words = captions.new_full((N,), START)
    alive = torch.arange(N, device=device)  # the rows that have not ended; only they are computed
    for t in range(max_length):
        scores, state, weights = captioner.advance(words, state)
        scores[:, [NULL, START, UNK]] = -torch.inf
        words = scores.argmax(dim=1)
        captions[alive, t] = words
        if weights is not None:
            if attn_weights is None:
                attn_weights = weights.new_zeros(N, max_length, *weights.shape[1:])
            attn_weights[alive, t] = weights
        going_on = words != END
        if not going_on.any():
            break
        if not going_on.all():
            alive, words = alive[going_on], words[going_on]
            state = tuple(tensor[going_on] for tensor in state)
    return captions, attn_weights
