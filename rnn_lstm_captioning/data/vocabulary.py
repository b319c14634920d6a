"""Words <-> indices, and the tokeniser that captions and metrics share."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

NULL, START, END, UNK = range(4)
LONGEST_WORD = 1000  # letters
SPECIAL_TOKENS = ["<NULL>", "<START>", "<END>", "<UNK>"]


def _marks():
    """All combining marks, for a character class: vowel signs, viramas and accents, which \\w does not match."""
    blocks = (range(0x300, 0x20000), range(0xE0100, min(0xE01F0, sys.maxunicode)))
    return "".join(chr(code) for block in blocks for code in block if unicodedata.category(chr(code))[0] == "M")


# a word: letters, digits and marks of any script; inside a word also apostrophes ("man's", not "'a dog'") and the
# joiners of Persian and Indic scripts (U+200C, U+200D)
_LETTER = r"[^\W_]"
_PART = rf"{_LETTER}(?:{_LETTER}|[{_marks()}])*"
_WORD = re.compile(rf"{_PART}(?:['\u200c\u200d]{_PART})*")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation: ``"A man's T-shirt."`` -> ``["a", "man's", "t", "shirt"]``.

    Composed and decomposed letters are the same (Unicode NFC). Text without spaces between its words, as in Thai or
    Chinese, is not split into words: put spaces into such captions.
    """
    lowered = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return _WORD.findall(lowered.replace("’", "'"))


def has_words(text: str) -> bool:
    """Whether :func:`tokenize` finds a word."""
    return bool(tokenize(text))


def build_vocabulary(captions: Iterable[list[str]], word_threshold: int = 1) -> tuple[list[str], Counter[str]]:
    """The vocabulary of tokenised captions.

    Args: captions, an iterable of word lists; word_threshold, how often a word must occur to be kept.
    Returns: idx_to_word, a list: the special words, then the others by falling frequency, ties
        in alphabetical order; and a Counter of all words.
    """
    counts: Counter[str] = Counter(word for caption in captions for word in caption)
    kept = [word for word, count in counts.items() if count >= word_threshold and len(word) <= LONGEST_WORD]
    return SPECIAL_TOKENS + sorted(kept, key=lambda word: (-counts[word], word)), counts


def encode_captions(captions: Sequence[list[str]], word_to_idx: Mapping[str, int], max_length: int = 15) -> Tensor:
    """Tokenised captions as rows of ``<START> words <END>``, padded with ``<NULL>``.

    Args: captions, a list of R word lists, which are cut after max_length words.
    Returns: int64 (R, max_length + 2).
    """
    rows = []
    for words in captions:
        indices = [START, *(word_to_idx.get(word, UNK) for word in words[:max_length]), END]
        rows.append(indices + [NULL] * (max_length + 2 - len(indices)))
    return torch.tensor(rows, dtype=torch.int64).view(len(captions), max_length + 2)


def decode_captions(captions: Tensor, idx_to_word: Sequence[str] | Mapping[int, str]) -> list[str] | str:
    """Rows of word indices as text, up to the first ``<END>``, without ``<NULL>`` and ``<START>``.

    Args: captions, int64 (N, T) or (T,); idx_to_word, a list or dict, index -> word.
    Returns: a list of N strings, or one string for a single row.
    """
    if captions.dim() == 1:
        return _decode_row(captions.tolist(), idx_to_word)
    return [_decode_row(row, idx_to_word) for row in captions.tolist()]


def _decode_row(row, idx_to_word):
    words = row[: row.index(END)] if END in row else row
    return " ".join(idx_to_word[word] for word in words if word not in (NULL, START))
