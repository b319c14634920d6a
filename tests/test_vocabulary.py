import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning.vocabulary import (
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


def test_tokenize():
    assert tokenize("A man's T-shirt, in 2 colours .") == ["a", "man's", "t", "shirt", "in", "2", "colours"]
    assert tokenize("'Über' naïve_cafés — 東京 don’t") == ["über", "naïve", "cafés", "東京", "don't"]
    assert tokenize(" .,!? ") == []


@given(st.text())
def test_tokenizing_twice_changes_nothing(text):
    words = tokenize(text)
    assert tokenize(" ".join(words)) == words


def test_vocabulary_keeps_frequent_words_in_a_fixed_order():
    captions = [["b", "a", "a"], ["c", "a", "b"], ["d"]]
    tokens, counts = build_vocabulary(captions, word_threshold=2)
    assert tokens == [*SPECIAL_TOKENS, "a", "b"]
    assert counts["a"] == 3 and counts["d"] == 1
    assert build_vocabulary(captions)[0] == [*SPECIAL_TOKENS, "a", "b", "c", "d"]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8), min_size=1))
def test_encoding_and_decoding_are_inverse_but_for_what_is_cut(captions):
    tokens = [*SPECIAL_TOKENS, *"abcde"]
    rows = encode_captions(captions, {token: i for i, token in enumerate(tokens)}, max_length=5)
    assert rows.shape == (len(captions), 7) and rows.dtype == torch.int64
    assert (rows[:, 0] == START).all() and ((rows == END).sum(1) == 1).all()
    for row in rows.tolist():
        assert set(row[row.index(END) + 1 :]) <= {NULL}
    expected = [" ".join(word if word in "abcde" else "<UNK>" for word in caption[:5]) for caption in captions]
    assert decode_captions(rows, tokens) == expected
    assert decode_captions(rows[0], dict(enumerate(tokens))) == expected[0]


def test_unknown_words_are_unk():
    assert encode_captions([["x"]], {}, 2).tolist() == [[START, UNK, END, NULL]]
