"""Self-critical sequence training: captions are drawn at random, and those that score better become more probable.

Teacher forcing rewards every next word that a human wrote; a caption is judged as a whole. Here the
expected CIDEr of the model's own captions is what rises, by its policy gradient (REINFORCE).

Sources: Rennie et al., "Self-critical Sequence Training for Image Captioning" (2017), equation 9, whose
baseline is the greedy caption; Luo, "A Better Variant of Self-Critical Sequence Training" (2020), whose
baseline is used here: the other captions that were drawn for the same picture.
"""

import torch

from .decoding import sampling_search
from .layers import evaluating
from .metrics import CiderReward
from .vocabulary import NULL, START


class SelfCritical:
    """What :class:`~rnn_lstm_captioning.training.Trainer` minimises instead of the captions' loss.

    Args: pairs, whose captions are not used, but how many a picture has: as many are drawn for it;
        references, a list of M lists of strings.
    """

    def __init__(self, pairs, references):
        self.pairs, self.reward = pairs, CiderReward(references)

    def batch_loss(self, captioner, rows, device):
        """Minus the mean CIDEr (1 is 100 percent) of the captions drawn for the pictures of some caption
        rows; its gradient is the policy gradient, but for two words and the dropout: <NULL> and <START>
        are never drawn, and nothing is dropped while drawing."""
        features = self.pairs.row_features(captioner, rows, device)
        with evaluating(captioner):  # <UNK> may be drawn, or it would be neither rewarded nor punished
            longest = self.pairs.captions.shape[1] - 1
            captions = sampling_search(captioner, features, longest, allow_unk=True).captions
        words = [[captioner.idx_to_word[word] for word in row if word != NULL] for row in captions.tolist()]
        images = self.pairs.image_index[rows]
        rewards = torch.tensor(self.reward(words, images.tolist()))
        advantages = (rewards - mean_of_others(rewards, images)).to(device)
        captions = torch.cat([captions.new_full((len(captions), 1), START), captions], dim=1)
        captions = captions[:, : (captions != NULL).sum(1).amax()]
        # gradient = - sum over drawn captions of (r - baseline) * gradient of log p(caption)
        surrogate = -(advantages * captioner.log_probs(features, captions)).mean()
        return surrogate - surrogate.detach() - rewards.mean()


def mean_of_others(rewards, images):
    """For every drawn caption the mean reward of the other ones of its picture; its own if there is none.

    Args: rewards (n,); images int64 (n,), which picture each is of. Returns: (n,).
    """
    _, group, counts = images.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(counts)).index_add(0, group, rewards)
    others = (counts - 1)[group]
    return torch.where(others > 0, (total[group] - rewards) / others.clamp(min=1), rewards)
