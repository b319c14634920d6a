"""Metrics: they equal those of the library on the same strings, and small cases calculated by hand."""

import math

import pytest
import torch
from helpers import CELLS, tiny_captioner
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from rnn_lstm_captioning import Decoding
from rnn_lstm_captioning.evaluation.captions import Caption, ImageCaptioner
from rnn_lstm_captioning.evaluation.metrics import (
    METRICS,
    CiderReward,
    can_score,
    diversity,
    human_against_others,
    nearest_captions,
    retrieval,
    score_captions,
    single_best_caption,
)
from rnn_lstm_captioning.model.captioner import evaluating

REFERENCES = [
    ["A dog runs .", "a brown dog is running", "The dog!"],
    ["Two men play football", "men playing a game"],
    ["a red car on a street", "A car is parked ."],
]


def test_scores_equal_those_of_the_library_on_the_same_strings():
    captions = ["a dog is running", "two dogs", "a car on the street"]
    total, each = score_captions(captions, REFERENCES)
    given = {0: ["a dog is running"], 1: ["two dogs"], 2: ["a car on the street"]}
    truth = {
        0: ["a dog runs", "a brown dog is running", "the dog"],
        1: ["two men play football", "men playing a game"],
        2: ["a red car on a street", "a car is parked"],
    }
    bleu, bleu_each = Bleu(4).compute_score(truth, given, verbose=0)
    rouge, rouge_each = Rouge().compute_score(truth, given)
    cider, cider_each = Cider().compute_score(truth, given)
    expected = [*bleu, rouge, cider]
    assert [total[name] for name in METRICS] == pytest.approx([100 * float(v) for v in expected])
    for name, values in zip(METRICS, [*bleu_each, rouge_each, cider_each]):
        assert each[name] == pytest.approx([100 * float(v) for v in values])


def test_bleu_equals_the_calculation_by_hand():
    # one caption of 4 words, 3 of them in a reference of 4: precisions 3/4, 2/3 (a b, b c); no brevity penalty
    total, _ = score_captions(["a b c x", "k l m n"], [["a b c d"], ["k l m n"]])
    assert total["BLEU-1"] == pytest.approx(100 * 7 / 8, rel=1e-6)
    assert total["BLEU-2"] == pytest.approx(100 * math.sqrt(7 / 8 * 5 / 6), rel=1e-6)
    # a word counts at most as often as it occurs in a reference; half the length gives the brevity penalty exp(1 - 2)
    total, _ = score_captions(["the the", "a b"], [["the cat sat here"], ["a b c d"]])
    assert total["BLEU-1"] == pytest.approx(100 * 3 / 4 * math.exp(-1), rel=1e-6)


def test_rouge_and_cider_equal_the_calculation_by_hand():
    # the longest common subsequence of "a b x" and "a c b d" is "a b": recall 2/4, precision 2/3, beta 1.2
    total, each = score_captions(["a b x", "q r s t"], [["a c b d"], ["q r s t"]])
    recall, precision, beta = 2 / 4, 2 / 3, 1.2
    assert each["ROUGE-L"][0] == pytest.approx(
        100 * (1 + beta**2) * recall * precision / (recall + beta**2 * precision)
    )
    # a caption equal to its only reference has cosine 1 for each n, times 10; with nothing in common it scores 0
    assert each["CIDEr"][1] == pytest.approx(1000)
    total, each = score_captions(["q r s t", "a c b d"], [["a c b d"], ["q r s t"]])
    assert each["CIDEr"] == [0, 0] and total["BLEU-1"] < 1e-6


def test_an_empty_caption_scores_nothing():
    total, each = score_captions(["", "two men play football"], REFERENCES[:2])
    assert each["CIDEr"][0] == 0 and each["BLEU-1"][0] < 1e-6 and math.isfinite(total["BLEU-4"])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="2 captions, but references for 3 images"):
        score_captions(["a", "b"], REFERENCES)
    with pytest.raises(ValueError, match="at least two images"):
        score_captions(["a"], REFERENCES[:1])
    with pytest.raises(ValueError, match="image 1 has no reference with a word in it"):
        score_captions(["a", "b"], [["a"], [" . "]])
    assert can_score(REFERENCES) and not can_score(None)
    assert not can_score(REFERENCES[:1]) and not can_score([["a"], []]) and not can_score([["a"], ["."]])


def test_baselines_choose_the_right_captions():
    train = ["a dog runs in the park", "a man is on a street", "one two three four five six"]
    references = [["a man is walking", "a man is on grass"], ["a man is on a bike"], ["the man is on a street"]]
    assert single_best_caption(train, references) == train[1]
    features, others = torch.eye(3), torch.tensor([[0.1, 2, 0], [5, 1, 0], [0, 0.2, 0.1]])
    assert nearest_captions(features, others, ["b", "a", "c"]) == ["a", "b", "c"]
    captions, others = human_against_others(REFERENCES + [["alone"]])
    assert captions[1] == "Two men play football" and others[1] == ["men playing a game"] and len(captions) == 3
    assert diversity(["a b", "a b", "c"]) == {"distinct": 2 / 3, "words_used": 3, "distinct_pairs": 1 / 2}
    assert diversity(["a b", "c"], ["c", "d e"])["novel"] == 1 / 2


def test_a_caption_finds_its_own_image_if_it_is_most_probable_there():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -0.5, -0.6], [-9.0, -1.0, -2.0]])
    assert retrieval(log_probs) == pytest.approx(2 / 3)


@pytest.mark.parametrize("cell", CELLS)
def test_the_log_probabilities_for_retrieval_are_those_of_the_captions(cell):
    model = tiny_captioner(cell)
    captioner, images = ImageCaptioner(model, 64), torch.rand(5, 3, 64, 64, dtype=torch.float64)
    with evaluating(model):
        features = model.encode(images)
    captions = captioner.caption_features(features, Decoding(max_length=5, temperature=1.0))
    captions = [caption for caption in captions if 0 < len(caption.words) < 5]
    captions.append(Caption("w0 w1", ["w0", "w1"], 0.0, None))
    found = captioner.log_probs(features, captions)
    assert found.shape == (len(captions), 5)
    row = torch.tensor([[1, model.word_to_idx["w0"], model.word_to_idx["w1"], 2]])
    with evaluating(model):
        torch.testing.assert_close(found[-1], model.log_probs(features, row.expand(5, -1)))


def test_references_without_a_word_are_not_used_as_a_baseline():
    captions, others = human_against_others([["...", "a dog", "two dogs"], [" ", "a cat"], ["?"]])
    assert captions == ["a dog"] and others == [["two dogs"]]


def test_the_reward_is_cider_with_the_end_as_a_word_and_the_frequencies_of_the_whole_set():
    truth = {
        0: ["a dog runs <END>", "a brown dog is running <END>", "the dog <END>"],
        1: ["two men play football <END>", "men playing a game <END>"],
        2: ["a red car on a street <END>", "a car is parked <END>"],
    }
    given = {0: ["a dog is running <END>"], 1: ["two men play"], 2: ["a car on the street <END>"]}
    expected = Cider().compute_score(truth, given)[1]
    captions = [given[i][0].split() for i in range(3)]
    reward = CiderReward(REFERENCES)
    assert reward(captions, [0, 1, 2]) == pytest.approx(expected, abs=1e-12)
    assert reward([captions[2]], [2]) == pytest.approx(expected[2:], abs=1e-12)
    assert reward([captions[1], captions[0]], [1, 0]) == pytest.approx(expected[[1, 0]], abs=1e-12)
    assert reward(captions * 3, [0, 1, 2] * 3) == pytest.approx([*expected] * 3, abs=1e-12)
    unfinished = captions[0][:-1]
    assert reward([unfinished], [0])[0] < expected[0]
