"""Self-critical sequence training: captions are sampled, and those with a high score become more probable.

Teacher forcing rewards single words, but a caption is judged as a whole. This objective raises the expected CIDEr of
the model's own captions, with the policy gradient (REINFORCE).

Sources: Rennie et al., "Self-critical Sequence Training for Image Captioning" (2017), equation 9, whose baseline is the
greedy caption; Luo, "A Better Variant of Self-Critical Sequence Training" (2020), whose baseline is used here: the
mean reward of the other captions that were sampled for the same image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.vocabulary import NULL, START
from ..evaluation.metrics import CiderReward
from ..model.captioner import CaptioningRNN, evaluating
from ..model.decoding import Decoding, sampling_search
from .batches import Batch
from .trainer import batch_features


class SelfCritical:
    """An objective for the :class:`~rnn_lstm_captioning.training.trainer.Trainer`, instead of the loss of the captions.

    Args: references, a list for each image; max_length, the largest number of words in a sampled caption, with
        ``<END>``. For each image, as many captions are sampled as the batch has captions of it.
    """

    def __init__(self, references: Sequence[list[str]], max_length: int) -> None:
        self.reward, self.decoding = CiderReward(references), Decoding(max_length=max_length, allow_unk=True)

    def __call__(self, captioner: CaptioningRNN, batch: Batch) -> Tensor:
        """Minus the mean CIDEr (1 is 100 percent) of the sampled captions. Its gradient is the policy gradient, with
        two exceptions: <NULL> and <START> are never sampled, and there is no dropout while sampling."""
        features = batch_features(captioner, batch)
        with evaluating(captioner):  # <UNK> may be sampled: otherwise it would get no reward and no penalty
            captions = sampling_search(captioner, features[batch.image_of_caption], self.decoding).captions
        words = [[captioner.idx_to_word[word] for word in row if word != NULL] for row in captions.tolist()]
        rewards = torch.tensor(self.reward(words, batch.image_index.tolist()))
        advantages = (rewards - mean_of_others(rewards, batch.image_index)).to(captions.device)
        captions = torch.cat([captions.new_full((len(captions), 1), START), captions], dim=1)
        captions = captions[:, : int((captions != NULL).sum(1).amax())]
        # gradient = - mean over sampled captions of (r - baseline) * gradient of log p(caption)
        surrogate = -(advantages * captioner.log_probs(features, captions, batch.image_of_caption)).mean()
        return surrogate - surrogate.detach() - rewards.mean()


def mean_of_others(rewards: Tensor, images: Tensor) -> Tensor:
    """For every sampled caption, the mean reward of the other captions of its image; its own if there is no other.

    Args: rewards (n,); images int64 (n,), the image of each caption. Returns: (n,).
    """
    _, group, counts = images.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(counts)).index_add(0, group, rewards)
    others = (counts - 1)[group]
    return torch.where(others > 0, (total[group] - rewards) / others.clamp(min=1), rewards)
