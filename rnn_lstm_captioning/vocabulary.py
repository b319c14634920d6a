"""Words <-> indices, and the one tokeniser for captions and metrics alike."""

import re
from collections import Counter

import torch

NULL, START, END, UNK = range(4)
SPECIAL_TOKENS = ["<NULL>", "<START>", "<END>", "<UNK>"]

# a word: letters and digits of any script, with apostrophes inside ("man's", not "'a dog'")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def tokenize(text):
    """Lower-case words without punctuation: ``"A man's T-shirt."`` -> ``["a", "man's", "t", "shirt"]``."""
    return _WORD.findall(text.lower().replace("’", "'"))


def has_words(text):
    """Whether :func:`tokenize` finds a word."""
    return _WORD.search(text) is not None


def build_vocabulary(captions, word_threshold=1):
    """The vocabulary of tokenised captions.

    Args: captions, an iterable of word lists; word_threshold, how often a word must occur.
    Returns: idx_to_token, a list: the special tokens, then words by falling frequency, ties in
        alphabetical order; and a Counter of all words.
    """
    counts = Counter(word for caption in captions for word in caption)
    kept = [word for word, count in counts.items() if count >= word_threshold]
    return SPECIAL_TOKENS + sorted(kept, key=lambda word: (-counts[word], word)), counts


def encode_captions(captions, token_to_idx, max_length=15):
    """Tokenised captions as rows of ``<START> words <END>``, padded with ``<NULL>``.

    Args: captions, a list of R word lists; words after the max_length-th are cut.
    Returns: int64 (R, max_length + 2).
    """
    rows = []
    for words in captions:
        indices = [START, *(token_to_idx.get(word, UNK) for word in words[:max_length]), END]
        rows.append(indices + [NULL] * (max_length + 2 - len(indices)))
    return torch.tensor(rows, dtype=torch.int64).view(len(captions), max_length + 2)


def decode_captions(captions, idx_to_word):
    """Rows of word indices as text, up to the first ``<END>``, without ``<NULL>`` and ``<START>``.

    Args: captions, int64 (N, T) or (T,); idx_to_word, a list or dict, index -> word.
    Returns: a list of N strings, or one string for a single row.
    """
    if captions.dim() == 1:
        return decode_captions(captions[None], idx_to_word)[0]
    texts = []
    for row in captions.tolist():
        words = row[: row.index(END)] if END in row else row
        texts.append(" ".join(idx_to_word[word] for word in words if word not in (NULL, START)))
    return texts
