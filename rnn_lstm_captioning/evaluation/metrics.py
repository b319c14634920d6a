"""BLEU, ROUGE-L and CIDEr of captions against human references, with pycocoevalcap (no Java).

All scores are in percent: CIDEr is 100 times pycocoevalcap's, whose ``Cider`` is CIDEr-D. The
project's own tokeniser splits captions and references, so punctuation and capitals do not count.

Sources: Papineni et al. (2002), Lin (2004), Vedantam, Zitnick and Parikh (2015, CIDEr).
"""

from collections import Counter
from collections.abc import Sequence

import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_test
from pycocoevalcap.rouge.rouge import Rouge
from torch import Tensor

from ..data.vocabulary import has_words, tokenize

References = Sequence[list[str]]  # for each image, its raw captions
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")


def can_score(references: References | None) -> bool:
    """Whether captions can be scored against references: at least two images, each with a reference that has a word."""
    return references is not None and len(references) > 1 and all(any(map(has_words, texts)) for texts in references)


def score_captions(captions: Sequence[str], references: References) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Score one caption per image.

    Args: captions, a list of N strings; references, a list of N lists of strings.
    Returns: a dict: metric -> score of the whole set, and a dict: metric -> list of N scores. CIDEr gives
        rare words of the set's references more weight, so it depends on the set, and needs more than
        one image. Raises: ValueError if the lists differ in length, an image has no reference
        with a word in it, or there are fewer than two images.
    """
    lists = not isinstance(captions, str) and all(not isinstance(texts, str) for texts in references)
    if not lists or not all(isinstance(text, str) for texts in ([*captions], *references) for text in texts):
        raise ValueError("captions must be a list of strings, and references a list of lists of strings")
    if len(captions) != len(references):
        raise ValueError(f"there are {len(captions)} captions, but references for {len(references)} images")
    if len(captions) < 2:
        raise ValueError("CIDEr needs at least two images")
    given = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(captions)}
    truth = _tokenized(references)
    total: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    bleu, bleu_each = Bleu(4).compute_score(truth, given, verbose=0)
    for name, value, values in zip(METRICS, bleu, bleu_each):
        total[name], each[name] = 100 * value, [100 * v for v in values]
    for name, metric in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        value, values = metric.compute_score(truth, given)
        total[name], each[name] = 100 * float(value), [100 * float(v) for v in values]
    return total, each


def cider(captions: Sequence[str], references: References) -> float:
    """Only the CIDEr of :func:`score_captions`, in a third of the time."""
    given = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(captions)}
    return 100 * float(Cider().compute_score(_tokenized(references), given)[0])


class CiderReward:
    """CIDEr of single captions, with the word frequencies of a whole training set.

    The end of a caption counts as a word: otherwise incomplete captions ("a man in a") would get a
    high reward. A reward of 1 is 100 percent.

    Args: references, a list of M lists of strings. Raises: ValueError if an image has none.
    """

    def __init__(self, references: References) -> None:
        self.scorer = CiderScorer()
        for texts in _tokenized(references).values():
            self.scorer += (None, [f"{text} <END>" for text in texts])
        self.scorer.compute_doc_freq()
        self.references = self.scorer.crefs

    def __call__(self, captions: Sequence[list[str]], images: Sequence[int]) -> list[float]:
        """captions, a list of n lists of words; images, the index of each caption's image -> a list of n scores."""
        scores: list[float] = []
        M = len(self.references)
        for start in range(0, len(captions), M):
            part = slice(start, start + M)
            of_captions = [self.references[image] for image in images[part]]
            # the scorer pairs captions with references, and uses the number of references as M
            self.scorer.crefs = of_captions + self.references[: M - len(of_captions)]
            self.scorer.ctest = [cook_test(" ".join(words)) for words in captions[part]]
            scores += map(float, self.scorer.compute_cider())
        return scores


def _tokenized(references):
    truth: dict[int, list[str]] = {}
    for i, texts in enumerate(references):
        truth[i] = [text for text in (" ".join(tokenize(text)) for text in texts) if text]
        if not truth[i]:
            raise ValueError(f"image {i} has no reference with a word in it")
    return truth


def diversity(captions: Sequence[str], train_captions: Sequence[str] = ()) -> dict[str, float]:
    """How much captions differ from each other, and from those of the training set.

    Returns: "distinct", the fraction of distinct captions; "words_used", the number of different words;
        "distinct_pairs", the fraction of distinct pairs of neighbouring words (Li et al. 2016, distinct-2); and, if
        there are train_captions, "novel", the fraction of captions that are none of them.
    """
    pairs = [pair for caption in captions for pair in _pairs(caption.split())]
    found = {
        "distinct": len(set(captions)) / len(captions),
        "words_used": len({word for caption in captions for word in caption.split()}),
        "distinct_pairs": len(set(pairs)) / max(len(pairs), 1),
    }
    if train_captions:
        known = set(train_captions)
        found["novel"] = sum(caption not in known for caption in captions) / len(captions)
    return found


def retrieval(log_probs: Tensor) -> float:
    """Does a caption say more about its own image than about others? (The idea is from Dai and Lin 2017.)

    Args: log_probs (n, n): row i has the log-probability of caption i given each of n images.
    Returns: the fraction of captions that are most probable given their own image.
    """
    best = log_probs.argmax(1)
    return (best == torch.arange(len(log_probs), device=best.device)).double().mean().item()


# ----------------------------------------------------------- baselines, to compare a score with


def single_best_caption(train_captions: Sequence[str], references: References, candidates: int = 100) -> str:
    """The training caption with the highest BLEU-4 if every image gets this same caption.

    Args: train_captions, a list of strings; references, a list of N lists of strings; candidates, how
        many captions are tried: those whose word pairs occur in the references of the most images.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for texts in references:
        pairs.update({pair for text in texts for pair in _pairs(tokenize(text))})

    def commonness(caption):
        found = [pairs[pair] for pair in _pairs(tokenize(caption))]
        return sum(found) / len(found) if len(found) >= 5 else 0

    best = sorted(dict.fromkeys(train_captions), key=commonness, reverse=True)[:candidates]
    truth = _tokenized(references)

    def bleu(caption):
        given = {i: [" ".join(tokenize(caption))] for i in truth}
        return Bleu(4).compute_score(truth, given, verbose=0)[0][3]

    return max(best, key=bleu)


def _pairs(words):
    return list(zip(words, words[1:]))


def nearest_captions(features: Tensor, train_features: Tensor, train_captions: Sequence[str]) -> list[str]:
    """For every image, a caption of the training image with the most similar features.

    Args: features (N, C) and train_features (M, C), standardised; train_captions, a list of M strings.
    Returns: a list of N strings.
    """
    unit = torch.nn.functional.normalize
    train = unit(train_features.float()).T
    nearest = torch.cat([(unit(part.float()) @ train).argmax(dim=1) for part in features.split(1024)])
    return [train_captions[i] for i in nearest.tolist()]


def human_against_others(references: References) -> tuple[list[str], list[list[str]]]:
    """One human's caption of each image, and the other humans' captions to score it against.

    Returns: captions and references of the images that have at least two captions with a word.
    """
    worded = ([text for text in texts if has_words(text)] for texts in references)
    enough = [texts for texts in worded if len(texts) > 1]
    return [texts[0] for texts in enough], [texts[1:] for texts in enough]
