"""Distillation: a captioner learns from the averaged probabilities of trained captioners, its teachers.

The caption of a data set says which word came next. The teachers say how probable every word was, so each training
caption teaches more, and a single captioner comes close to the ensemble of its teachers.

Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015); Kim and Rush, "Sequence-Level
Knowledge Distillation" (2016), section 3.1, word level.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.caption_file import CaptionData
from ..data.vocabulary import NULL
from ..model.captioner import CaptioningRNN, evaluating
from ..model.ensemble import Ensemble
from . import distributed
from .batches import Batch, Pairs
from .features import FeaturePass, prepare_pairs
from .precision import autocast
from .trainer import batch_features

MOST_PROBABLE = 32  # words that are kept of every distribution
CAPTIONS = 256  # that the teachers read at a time


class Distillation:
    """An objective for the :class:`~rnn_lstm_captioning.training.trainer.Trainer`, instead of the loss of the captions:
    the cross-entropy between the teachers' distribution of every next word and the captioner's.

    Args: words int32 (R, T, K), the most probable next words at every position of the R training captions, and probs
        float16 (R, T, K), their probabilities, which add up to 1.
    """

    def __init__(self, words: Tensor, probs: Tensor) -> None:
        self.words, self.probs = words, probs

    def __call__(self, captioner: CaptioningRNN, batch: Batch) -> Tensor:
        """The mean cross-entropy per caption, in nats."""
        features, (inputs, targets) = batch_features(captioner, batch), (batch.captions[:, :-1], batch.captions[:, 1:])
        scored = targets != NULL  # (n, T)
        words, probs = (
            tensor[batch.rows, : targets.shape[1]].to(scored.device)[scored] for tensor in (self.words, self.probs)
        )  # (scored words, K)
        scores = captioner.vocabulary_projection(captioner.hidden_states(features, inputs)[scored])
        # loss = - sum over the words v of p_teachers(v) log p(v)
        log_probs = scores.float().log_softmax(1).gather(1, words.long())
        return -(probs.float() * log_probs).sum() / len(inputs)


def distillation(
    teachers: Sequence[CaptioningRNN], data: CaptionData, train: Pairs, feature_pass: FeaturePass | None = None
) -> Distillation:
    """Ask the teachers, once, for the next words of all training captions. They read every image and its mirror image.

    Args: teachers, on their device, with the vocabulary of the data; train, the pairs of the captioner that learns.
    """
    ensemble, feature_pass = Ensemble(teachers, mirror=True), feature_pass or FeaturePass()
    features = [
        prepare_pairs(teacher, data, "train", replace(feature_pass, mirrored=mirrored), cached=True).features
        for teacher, mirrored in zip(ensemble.captioners, ensemble.mirrored)
    ]
    device = ensemble.feature_mean.device
    rows = distributed.shard(torch.arange(len(train)))
    K = min(MOST_PROBABLE, len(ensemble.idx_to_word))
    words = torch.zeros(len(rows), train.captions.shape[1] - 1, K, dtype=torch.int32)
    probs = torch.zeros(words.shape, dtype=torch.float16)
    parts = range(0, len(rows), CAPTIONS)
    with evaluating(ensemble):
        for start in tqdm(parts, desc="teachers", unit="batch", disable=not feature_pass.progress, leave=False):
            part = slice(start, start + CAPTIONS)
            captions, images = train.captions[rows[part]], train.image_index[rows[part]]
            read = ensemble.join([grid[images].to(device) for grid in features if grid is not None])
            with autocast(device, feature_pass.precision):
                log_probs = ensemble.scores(read, captions[:, :-1].to(device))
            best = log_probs.topk(K, dim=2)
            words[part], probs[part] = best.indices.int().cpu(), best.values.softmax(2).half().cpu()
    gathered = distributed.all_gather((words, probs))
    return Distillation(*(torch.cat(tensors) for tensors in zip(*gathered)))
