"""Greedy search, sampling and beam search, on language models so small that all captions can be enumerated."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import CELLS, CELLS_BY_NAME, tiny_captioner
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_lstm_captioning.data.vocabulary import END, NULL, START, UNK
from rnn_lstm_captioning.model.decoding import Decoding, beam_search, decode, greedy_search, sampling_search


class TableCaptioner:
    """A language model that is a table: the scores of the next word depend on image, time step and last word."""

    def __init__(self, table, once=(), never_last=()):
        self.table = table  # (N, L, V, V)
        self.written_once, self.never_last = torch.zeros(2, table.shape[-1], dtype=torch.bool)
        self.written_once[list(once)] = True
        self.never_last[list(never_last)] = True

    def start(self, features):
        index = torch.arange(len(features))
        return (torch.zeros_like(index),), index

    def step(self, words, state, image):
        (time,) = state
        return self.table[image, time, words].clone(), (time + 1,), None


def allowed_log_probs(table, allow_unk):
    banned = [NULL, START] if allow_unk else [NULL, START, UNK]
    table = table.clone()
    table[..., banned] = -torch.inf
    return table.log_softmax(-1)


def all_captions(log_probs, L):
    """Yields every caption of one image, its log-probability and its length. It ends, or is cut after L words."""
    V = log_probs.shape[-1]
    for length in range(1, L + 1):
        for words in itertools.product(range(V), repeat=length):
            if END in words[:-1] or (length < L and words[-1] != END):
                continue
            total = sum(log_probs[t, last, word].item() for t, (last, word) in enumerate(zip((START, *words), words)))
            if total > -math.inf:
                yield (*words, *[NULL] * (L - length)), total, length


def random_table(N, L, V, seed, spread=2.0, end_bias=0.0):
    table = spread * torch.randn(N, L, V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    table[..., END] += end_bias
    return table


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.7, 1.0]), st.booleans(), st.floats(-4, 2))
def test_a_wide_beam_equals_exhaustive_search(seed, length_penalty, allow_unk, end_bias):
    L, V = 4, 6
    table = random_table(2, L, V, seed, end_bias=end_bias)
    found = beam_search(
        TableCaptioner(table), torch.zeros(2, 1, 1, 1), Decoding(L, 64, length_penalty, allow_unk=allow_unk)
    )
    for image, log_probs in enumerate(allowed_log_probs(table, allow_unk)):
        best = max(all_captions(log_probs, L), key=lambda item: item[1] / item[2] ** length_penalty)
        assert tuple(found.captions[image].tolist()) == best[0]
        assert found.log_probs[image].item() == pytest.approx(best[1], abs=1e-10)


cases = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(5, 9), st.integers(0, 10**6), st.floats(-60, 4))


def check_caption(captions, log_probs, table, allow_unk):
    """Captions are well-formed, and their log-probabilities are right."""
    expected = allowed_log_probs(table, allow_unk)
    for row, log_prob, table_of_image in zip(captions.tolist(), log_probs.tolist(), expected):
        words = row[: row.index(END) + 1] if END in row else row
        assert all(word == NULL for word in row[len(words) :])
        assert NULL not in words and START not in words and (allow_unk or UNK not in words)
        total = sum(table_of_image[t, last, word].item() for t, (last, word) in enumerate(zip([START, *words], words)))
        assert log_prob == pytest.approx(total, abs=1e-8)


@settings(max_examples=1000)
@given(cases, st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_beam_search_returns_captions_that_rank_no_lower_than_the_greedy_ones(case, beam, length_penalty, allow_unk):
    N, L, V, seed, end_bias = case  # at a bias of -60 no caption ever ends
    table = random_table(N, L, V, seed, end_bias=end_bias)
    captioner, features = TableCaptioner(table), torch.zeros(N, 1, 1, 1)
    found = beam_search(captioner, features, Decoding(L, beam, length_penalty, allow_unk=allow_unk))
    greedy = greedy_search(captioner, features, L, allow_unk)
    check_caption(found.captions, found.log_probs, table, allow_unk)
    check_caption(greedy.captions, greedy.log_probs, table, allow_unk)

    def rank(result):
        return result.log_probs / (result.captions != NULL).sum(1) ** length_penalty

    assert (rank(found) >= rank(greedy) - 1e-9).all()
    if beam == 1:
        assert torch.equal(found.captions, greedy.captions)


@settings(max_examples=100)
@given(cases, st.sampled_from([0.3, 1.0, 2.0]), st.sampled_from([None, 1, 3]), st.sampled_from([None, 0.2, 1.0]))
def test_sampling_draws_allowed_words_and_returns_their_probability(case, temperature, top_k, top_p):
    N, L, V, seed, end_bias = case
    table = random_table(N, L, V, seed, end_bias=end_bias)
    captioner, features = TableCaptioner(table), torch.zeros(N, 1, 1, 1)

    def draw():
        decoding = Decoding(L, temperature=temperature, top_k=top_k, top_p=top_p)
        return sampling_search(captioner, features, decoding, generator=torch.Generator().manual_seed(seed))

    found = draw()
    check_caption(found.captions, found.log_probs, table, allow_unk=False)
    assert torch.equal(found.captions, draw().captions)
    if top_k == 1:
        assert torch.equal(found.captions, greedy_search(captioner, features, L).captions)


@pytest.mark.parametrize("values", [{"top_p": 1e-300}, {"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-8}])
def test_the_strictest_sampling_is_greedy_search(values):
    table = random_table(3, 5, 9, 0)
    captioner, features = TableCaptioner(table), torch.zeros(3, 1, 1, 1)
    found = sampling_search(captioner, features, Decoding(5, **values))
    assert torch.equal(found.captions, greedy_search(captioner, features, 5).captions)


def check_best(found, table, L, length_penalty, fits):
    """For every image, found is the best of the captions that fit."""
    for image, log_probs in enumerate(allowed_log_probs(table, False)):
        captions = [item for item in all_captions(log_probs, L) if fits(item[0])]
        best = max(captions, key=lambda item: item[1] / item[2] ** length_penalty)
        assert tuple(found.captions[image].tolist()) == best[0]
        assert found.log_probs[image].item() == pytest.approx(best[1], abs=1e-10)  # the model's: not normalised again


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0]), st.sets(st.integers(4, 6)), st.integers(0, 2))
def test_without_repeats_a_wide_beam_finds_the_best_caption_that_has_none(seed, length_penalty, once, given_words):
    L, V = 4, 7
    table, beginning = random_table(2, L, V, seed, end_bias=-2.0), [4, 4][:given_words]  # a beginning may repeat
    decoding = Decoding(L, 200, length_penalty, no_repeats=True)
    found = beam_search(TableCaptioner(table, once), torch.zeros(2, 1, 1, 1), decoding, beginning)

    def has_no_repeats(words):
        new = [word for t, word in enumerate(words) if t >= given_words and word in words[:t]]
        return not once & set(new) and list(words[:given_words]) == beginning

    check_best(found, table, L, length_penalty, has_no_repeats)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0]), st.sets(st.integers(4, 6), max_size=2), st.integers(0, 2))
def test_without_bad_endings_a_wide_beam_finds_the_best_caption_that_ends_well(
    seed, length_penalty, never, given_words
):
    L, V = 4, 7
    table, beginning = random_table(2, L, V, seed), [4, 5][:given_words]
    decoding = Decoding(L, 200, length_penalty, no_bad_endings=True)
    found = beam_search(TableCaptioner(table, never_last=never), torch.zeros(2, 1, 1, 1), decoding, beginning)

    def ends_well(words):
        last = [word for word in words if word > UNK][-1:]
        return not never & set(last) and list(words[:given_words]) == beginning

    check_best(found, table, L, length_penalty, ends_well)


@settings(max_examples=200)
@given(cases, st.sets(st.integers(4, 8)), st.sets(st.integers(4, 8)), st.integers(1, 7))
def test_no_search_ends_a_caption_badly_unless_no_other_word_is_left(case, never, once, beam):
    N, L, V, seed, end_bias = case
    table = random_table(N, L, V, seed, end_bias=end_bias)
    never, once = ({word for word in words if word < V} for words in (never, once))
    captioner, features = TableCaptioner(table, once, never), torch.zeros(N, 1, 1, 1)
    searches = [Decoding(L), Decoding(L, beam), Decoding(L, temperature=1.5), Decoding(L, top_p=0.5)]
    results = [decode(captioner, features, replace(s, no_repeats=True, no_bad_endings=True)) for s in searches]
    for found in results:
        check_caption(found.captions, found.log_probs, table, allow_unk=False)
        for row in found.captions.tolist():
            words = [word for word in row if word > UNK]
            others = set(range(4, V)) - {word for word in words if word in once}
            others -= never if len(words) == L - 1 else set()
            assert not words or words[-1] not in never or not others
    assert (results[1].log_probs >= results[0].log_probs - 1e-9).all()  # beam search and greedy search
    for search in searches[:2]:  # nothing changes if there is nothing to forbid
        alone = decode(TableCaptioner(table), features, replace(search, no_bad_endings=True))
        assert torch.equal(alone.captions, decode(captioner, features, search).captions)


@settings(max_examples=200)
@given(cases, st.sets(st.integers(4, 8)), st.integers(1, 7))
def test_no_search_repeats_a_word_that_is_written_once(case, once, beam):
    N, L, V, seed, end_bias = case
    table = random_table(N, L, V, seed, end_bias=end_bias)
    once = {word for word in once if word < V}
    captioner, features = TableCaptioner(table, once), torch.zeros(N, 1, 1, 1)
    searches = [Decoding(L), Decoding(L, beam), Decoding(L, temperature=1.5), Decoding(L, top_p=0.5)]
    results = [decode(captioner, features, replace(search, no_repeats=True)) for search in searches]
    for found in results:
        check_caption(found.captions, found.log_probs, table, allow_unk=False)
        for row in found.captions.tolist():
            assert all(row.count(word) <= 1 for word in once)
    assert (results[1].log_probs >= results[0].log_probs - 1e-9).all()  # beam search and greedy search
    for search in searches[:2]:  # nothing changes if there is nothing to forbid
        alone = decode(TableCaptioner(table), features, replace(search, no_repeats=True))
        assert torch.equal(alone.captions, decode(captioner, features, search).captions)


@settings(max_examples=100)
@given(cases, st.data())
def test_every_search_continues_a_beginning(case, data):
    N, L, V, seed, end_bias = case
    table = random_table(N, L, V, seed, end_bias=end_bias)
    captioner, features = TableCaptioner(table), torch.zeros(N, 1, 1, 1)
    beginning = data.draw(st.lists(st.integers(4, V - 1), max_size=L))
    if beginning and data.draw(st.booleans()):
        beginning[-1] = END
    for keywords in ({}, {"beam": 3}, {"temperature": 1.0}):
        found = decode(captioner, features, Decoding(L, **keywords), beginning)
        assert found.captions[:, : len(beginning)].tolist() == [beginning] * N
        check_caption(found.captions, found.log_probs, table, allow_unk=False)
    wide = beam_search(captioner, features[:1], Decoding(L, V**2), beginning) if L <= 3 else None
    if wide is not None:  # exhaustive search
        captions = all_captions(allowed_log_probs(table, False)[0], L)
        best = max((item for item in captions if [*item[0][: len(beginning)]] == beginning), key=lambda item: item[1])
        assert wide.log_probs[0].item() == pytest.approx(best[1], abs=1e-10)


def test_an_impossible_beginning_is_refused():
    captioner, features = TableCaptioner(random_table(1, 2, 6, 0)), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="the beginning has 3 words, wanted at most max_length, 2"):
        greedy_search(captioner, features, 2, beginning=[4, 5, 4])
    for beginning in ([NULL], [START], [END, 4], [UNK]):
        with pytest.raises(ValueError, match="the beginning contains a word that is not allowed there"):
            beam_search(captioner, features, Decoding(2), beginning)
    assert greedy_search(captioner, features, 2, allow_unk=True, beginning=[UNK]).captions[0, 0] == UNK


def test_sampling_follows_the_probabilities():
    N = 4000
    table = torch.tensor([0.0, 0, 0.1, 0, 0.5, 0.3, 0.1]).log().expand(1, 7, 7).expand(N, 1, 7, 7).double()

    def shares(**settings):
        generator = torch.Generator().manual_seed(0)
        decoding = Decoding(1, **settings)
        found = sampling_search(TableCaptioner(table), torch.zeros(N, 1, 1, 1), decoding, generator=generator)
        return found.captions.flatten().bincount(minlength=7) / N

    assert (shares() - torch.tensor([0, 0, 0.1, 0, 0.5, 0.3, 0.1])).abs().max() < 0.03
    squared = torch.tensor([0, 0, 0.01, 0, 0.25, 0.09, 0.01])
    assert (shares(temperature=0.5) - squared / squared.sum()).abs().max() < 0.03
    assert (shares(top_k=2) - torch.tensor([0, 0, 0, 0, 0.625, 0.375, 0])).abs().max() < 0.03
    assert (shares(top_p=0.6) - torch.tensor([0, 0, 0, 0, 0.625, 0.375, 0])).abs().max() < 0.03
    assert shares(top_p=0.01)[4] == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"temperature": 0}, "temperature is 0, wanted above 0 and finite"),
        ({"temperature": math.inf}, "temperature is inf, wanted above 0 and finite"),
        ({"temperature": math.nan}, "temperature is nan, wanted above 0 and finite"),
        ({"length_penalty": math.nan}, "length_penalty is nan, wanted from -10 to 10"),
        ({"length_penalty": -math.inf}, "length_penalty is -inf, wanted from -10 to 10"),
        ({"max_length": 0}, "max_length is 0, wanted an int of at least 1"),
        ({"beam": 0}, "beam is 0, wanted an int of at least 1"),
        ({"top_k": 0}, "top_k is 0, wanted an int of at least 1"),
        ({"top_p": 1.5}, r"top_p is 1.5, wanted in \(0, 1\]"),
        ({"top_k": 5, "beam": 3}, "choose beam search or sampling"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**values)


def test_a_tiny_temperature_equals_greedy_search():
    captioner, features = TableCaptioner(random_table(3, 4, 8, 1).float()), torch.zeros(3, 1, 1, 1)
    drawn = sampling_search(captioner, features, Decoding(4, temperature=1e-300))
    assert torch.equal(drawn.captions, greedy_search(captioner, features, 4).captions)


@pytest.mark.parametrize(
    "cell, image_input",
    [
        (cell, way)
        for cell in CELLS
        for way in ("h0", "first-token")
        if way == "h0" or not CELLS_BY_NAME[cell].uses_grid
    ],
)
def test_beams_of_a_real_captioner_do_not_mix_images(cell, image_input):
    captioner = tiny_captioner(cell, V=9, image_input=image_input).eval()
    captioner.vocabulary_projection.W.data *= 6  # clear preferences, so that captions differ and end at different times
    features = 3 * torch.randn(7, 6, 2, 3, dtype=torch.float64)
    together = beam_search(captioner, features, Decoding(6, 3))
    for row in range(7):
        alone = beam_search(captioner, features[row : row + 1], Decoding(6, 3))
        assert torch.equal(alone.captions[0], together.captions[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row])
        if together.attn_weights is not None:
            torch.testing.assert_close(alone.attn_weights[0], together.attn_weights[row])
    # the log-probability equals that of teacher forcing with the same words
    words = together.captions
    scores = captioner.scores(features, torch.cat([torch.full((7, 1), START), words[:, :-1]], 1))
    scores[..., [NULL, START, UNK]] = -torch.inf
    log_probs = scores.log_softmax(2).gather(2, words.unsqueeze(2)).squeeze(2).where(words != NULL, 0)
    torch.testing.assert_close(log_probs.sum(1), together.log_probs)
    assert (together.attn_weights is None) == (cell != "attn")
    if cell == "attn":
        sums = together.attn_weights.sum((2, 3))
        torch.testing.assert_close(sums, (words != NULL).double())


def test_decode_chooses_the_search():
    captioner, features = TableCaptioner(random_table(3, 4, 8, 1)), torch.zeros(3, 1, 1, 1)
    greedy, beam = Decoding(4), Decoding(4, 4)
    assert torch.equal(decode(captioner, features, greedy).captions, greedy_search(captioner, features, 4).captions)
    assert torch.equal(decode(captioner, features, beam).log_probs, beam_search(captioner, features, beam).log_probs)
    drawn = [
        decode(captioner, features, Decoding(4, top_k=5), generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2)
    ]
    assert torch.equal(drawn[0].captions, drawn[1].captions) and not torch.equal(drawn[0].captions, drawn[2].captions)


def test_the_recommended_settings_are_a_beam_with_a_length_penalty_unless_words_are_drawn():
    usual = Decoding(no_repeats=True, no_bad_endings=True)
    assert Decoding.recommended() == replace(usual, beam=5, length_penalty=1.0)
    assert Decoding.recommended(beam=1, max_length=None) == replace(usual, beam=1, length_penalty=1.0)
    plain = Decoding.recommended(beam=3, length_penalty=0.0, no_repeats=False, no_bad_endings=False)
    assert plain == Decoding(beam=3)
    assert Decoding.recommended(temperature=0.5, beam=None) == replace(usual, temperature=0.5)
    with pytest.raises(ValueError, match="choose beam search or sampling"):
        Decoding.recommended(top_k=3, beam=2)
