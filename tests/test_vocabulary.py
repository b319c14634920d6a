"""Words, the vocabulary, and captions as rows of indices."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning.data.vocabulary import (
    END,
    NULL,
    SPECIAL_TOKENS,
    START,
    UNK,
    build_vocabulary,
    decode_captions,
    encode_captions,
    tokenize,
)


def test_words_are_lower_case_without_punctuation():
    assert tokenize("A man's T-shirt, in 2 colours .") == ["a", "man's", "t", "shirt", "in", "2", "colours"]
    assert tokenize("'Über' naïve_cafés — 東京 don’t") == ["über", "naïve", "cafés", "東京", "don't"]
    assert tokenize(" .,!? ") == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("कुत्ता घास पर दौड़ता है।", ["कुत्ता", "घास", "पर", "दौड़ता", "है"]),  # Hindi: vowel signs and viramas
        ("ஒரு நாய் ஓடுகிறது.", ["ஒரு", "நாய்", "ஓடுகிறது"]),  # Tamil
        ("একটি কুকুর দৌড়াচ্ছে", ["একটি", "কুকুর", "দৌড়াচ্ছে"]),  # Bengali
        ("สุนัข วิ่ง เร็ว", ["สุนัข", "วิ่ง", "เร็ว"]),  # Thai, with spaces
        ("கோ\u200cவில்", ["கோ\u200cவில்"]),  # a joiner stays inside its word
        ("سگ می‌دود", ["سگ", "می\u200cدود"]),  # Persian, with a zero-width non-joiner
        ("كَلْبٌ يَرْكُضُ", ["كَلْبٌ", "يَرْكُضُ"]),  # Arabic, vocalised
        ("כֶּלֶב רָץ", ["כֶּלֶב", "רָץ"]),  # Hebrew, with points
        ("nai\u0308ve café", ["naïve", "café"]),  # decomposed
        ("개가 달린다", ["개가", "달린다"]),  # Korean, decomposed
        ("İstanbul'da bir köpek", ["i\u0307stanbul'da", "bir", "köpek"]),  # Turkish: one word
        ("con chó đang chạy", ["con", "chó", "đang", "chạy"]),  # Vietnamese
        ("собака бежит — ёж", ["собака", "бежит", "ёж"]),
        ("\u0301 \u200d '", []),  # marks and joiners alone are not words
    ],
)
def test_words_of_any_script_are_found(text, words):
    assert tokenize(text) == [unicodedata.normalize("NFC", word) for word in words]
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(text)


@given(st.text())
def test_tokenizing_twice_changes_nothing(text):
    words = tokenize(text)
    assert tokenize(" ".join(words)) == words


def test_vocabulary_keeps_frequent_words_in_a_fixed_order():
    captions = [["b", "a", "a"], ["c", "a", "b"], ["d"]]
    words, counts = build_vocabulary(captions, word_threshold=2)
    assert words == [*SPECIAL_TOKENS, "a", "b"]
    assert counts["a"] == 3 and counts["d"] == 1
    assert build_vocabulary(captions)[0] == [*SPECIAL_TOKENS, "a", "b", "c", "d"]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8), min_size=1))
def test_decoding_reverses_encoding_except_for_cut_and_unknown_words(captions):
    vocabulary = [*SPECIAL_TOKENS, *"abcde"]
    rows = encode_captions(captions, {word: i for i, word in enumerate(vocabulary)}, max_length=5)
    assert rows.shape == (len(captions), 7) and rows.dtype == torch.int64
    assert (rows[:, 0] == START).all() and ((rows == END).sum(1) == 1).all()
    for row in rows.tolist():
        assert set(row[row.index(END) + 1 :]) <= {NULL}
    expected = [" ".join(word if word in "abcde" else "<UNK>" for word in caption[:5]) for caption in captions]
    assert decode_captions(rows, vocabulary) == expected
    assert decode_captions(rows[0], dict(enumerate(vocabulary))) == expected[0]


def test_unknown_words_are_unk():
    assert encode_captions([["x"]], {}, 2).tolist() == [[START, UNK, END, NULL]]
