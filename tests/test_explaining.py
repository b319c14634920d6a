"""Explanations are true: against finite differences, and on scenes, where the truth is known. Interventions do what
they say, with every cell and every search."""

import pytest
import torch
from helpers import CELLS, TinyEncoder, tiny_captioner
from hypothesis import given
from hypothesis import strategies as st

from rnn_lstm_captioning import Decoding, InputError
from rnn_lstm_captioning.cells import CELLS as REGISTRY
from rnn_lstm_captioning.classroom.explaining import explain
from rnn_lstm_captioning.classroom.interventions import Intervened, Intervention, gate_names
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.decoding import allowed, decode

GRID = (2, 3)


def captioner(cell, **keywords):
    torch.manual_seed(1)
    model = tiny_captioner(cell, **keywords)
    features = torch.randn(1, TinyEncoder.out_channels, *GRID, dtype=torch.float64)
    return model, features


def log_prob(model, features, words, t):
    """Of word t (the last one is <END>), written out: one step after the other."""
    read = [1, *(model.word_to_idx[word] for word in words)]
    target = [*read[1:], 2][t]
    with evaluating(model):
        scores = model.scores(features, torch.tensor([read]))[0, t]
        return allowed(scores.clone()).log_softmax(0)[target].item()


WAYS = [(cell, "h0") for cell in CELLS] + [("lstm", "first-token")]


@pytest.mark.parametrize(("cell", "image_input"), WAYS)
def test_the_gradient_of_a_region_is_that_of_finite_differences(cell, image_input):
    model, features = captioner(cell, image_input=image_input)
    words = ["w0", "w3", "w0"]
    found = explain(model, features, words)
    blank = features.mean((2, 3), keepdim=True)
    for t in range(4):
        assert found.log_probs[t].item() == pytest.approx(log_prob(model, features, words, t), abs=1e-10)
        for row, column in ((0, 0), (1, 2)):
            change = torch.zeros_like(features)
            change[..., row, column] = (features - blank)[..., row, column]
            eps = 1e-5
            above, below = (log_prob(model, features + sign * eps * change, words, t) for sign in (1, -1))
            assert found.region_gradient[t, row, column].item() == pytest.approx((above - below) / (2 * eps), abs=1e-7)


@pytest.mark.parametrize(("cell", "image_input"), WAYS)
def test_occlusion_is_measured_anew(cell, image_input):
    model, features = captioner(cell, image_input=image_input)
    words = ["w1", "w2"]
    found = explain(model, features, words)
    without = features.clone()
    without[..., 1, 0] = features.mean((2, 3))
    for t in range(3):
        wanted = log_prob(model, features, words, t) - log_prob(model, without, words, t)
        assert found.region_occlusion[t, 1, 0].item() == pytest.approx(wanted, abs=1e-10)
    # a word: its vector in the table becomes the mean of all vectors, where it occurs only once
    table = model.word_embedding.W_embed.data
    kept = table[model.word_to_idx["w1"]].clone()
    before = [log_prob(model, features, words, t) for t in range(3)]
    table[model.word_to_idx["w1"]] = table.mean(0)
    after = [log_prob(model, features, words, t) for t in range(3)]
    table[model.word_to_idx["w1"]] = kept
    wanted = torch.tensor([b - a for b, a in zip(before, after)], dtype=torch.float64)
    torch.testing.assert_close(found.word_occlusion[:, 1], wanted, atol=1e-9, rtol=0)


@given(cell=st.sampled_from(CELLS), T=st.integers(0, 4), grid=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_an_explanation_has_the_shapes_it_promises_and_no_word_looks_ahead(cell, T, grid):
    model = tiny_captioner(cell)
    features = torch.randn(1, TinyEncoder.out_channels, *grid, dtype=torch.float64)
    found = explain(model, features, ["w1"] * T)
    assert found.words == ["w1"] * T + ["<END>"] and found.log_probs.shape == (T + 1,)
    for regions in (found.region_gradient, found.region_occlusion):
        assert regions.shape == (T + 1, *grid) and regions.isfinite().all()
    for words in (found.word_gradient, found.word_occlusion):
        assert words.shape == (T + 1, T + 1)
        assert words.triu(1).abs().max() == 0
    uses_grid = REGISTRY[cell].uses_grid
    assert (found.attention is not None) == uses_grid
    if uses_grid:
        torch.testing.assert_close(found.attention.sum((1, 2)), torch.ones(T + 1, dtype=torch.float64))


def test_an_unknown_word_and_two_images_are_refused():
    model, features = captioner("lstm")
    with pytest.raises(InputError, match="'zebra' is not in the captioner's vocabulary"):
        explain(model, features, ["zebra"])
    with pytest.raises(ValueError, match="wanted \\(1, C"):
        explain(model, features.repeat(2, 1, 1, 1), ["w1"])


# ------------------------------------------------------------------------------------ interventions

SEARCHES = [Decoding(), Decoding(beam=3), Decoding(temperature=1.0)]


def write(model, features, decoding=None):
    generator = torch.Generator().manual_seed(0)
    with evaluating(model if isinstance(model, torch.nn.Module) else model.model):
        return decode(model, features, decoding or Decoding(), generator=generator)


@pytest.mark.parametrize("decoding", SEARCHES, ids=["greedy", "beam", "sampling"])
@pytest.mark.parametrize(("cell", "image_input"), WAYS)
def test_no_intervention_changes_nothing(cell, image_input, decoding):
    model, features = captioner(cell, image_input=image_input)
    features = torch.randn(5, *features.shape[1:], dtype=torch.float64)
    plain, same = write(model, features, decoding), write(Intervened(model, Intervention()), features, decoding)
    assert torch.equal(plain.captions, same.captions)
    torch.testing.assert_close(plain.log_probs, same.log_probs)


def steps(model, features, words, intervention=None):
    """The states of a caption, step by step, and the gates that the (changed) cell reports."""
    intervened = Intervened(model, intervention or Intervention())
    states, gates = [], []
    with evaluating(model):
        state, image = intervened.start(features)
        for word in words:
            x = model.word_embedding(torch.tensor([word]))
            if intervention is None or intervention.other is None:
                gates.append(intervened.model.cell.gates(x, state[:-1], image))
            scores, state, weights = intervened.step(torch.tensor([word]), state, image)
            states.append((scores, state, weights))
    return states, gates


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if gate_names(tiny_captioner(cell))])
def test_a_held_gate_has_its_value_at_every_step_and_the_others_are_free(cell, value):
    model, features = captioner(cell)
    before = [parameter.clone() for parameter in model.cell.parameters()]
    for name in gate_names(model):
        _, free = steps(model, features, [1, 5, 7])
        _, held = steps(model, features, [1, 5, 7], Intervention(gates={name: value}))
        _, unit = steps(model, features, [1, 5, 7], Intervention(gates={(name, 2): value}))
        for t in range(3):
            torch.testing.assert_close(held[t][name], torch.full_like(held[t][name], value), atol=1e-12, rtol=0)
            assert unit[t][name][0, 2].item() == pytest.approx(value, abs=1e-12)
        others = [other for other in free[0] if other != name and "gate" in other]
        for other in others:  # at the first step, before the change has reached the state
            torch.testing.assert_close(held[0][other], free[0][other])
        rest = [k for k in range(model.hidden_dim) if k != 2]
        torch.testing.assert_close(unit[0][name][:, rest], free[0][name][:, rest])
    assert all(torch.equal(a, b) for a, b in zip(before, model.cell.parameters()))  # the captioner itself is as it was


def test_an_lstm_with_an_open_forget_gate_and_a_closed_input_gate_keeps_its_cell_state():
    model, features = captioner("attn")
    states, _ = steps(model, features, [1, 5, 7], Intervention(gates={"forget": 1, "input": 0}))
    first = Intervened(model, Intervention()).start(features)[0][1]
    for _, state, _ in states:
        torch.testing.assert_close(state[1], first)


def test_an_erased_state_is_zero_before_the_word_and_nothing_changes_earlier():
    model, features = captioner("lstm")
    plain, _ = steps(model, features, [1, 5, 7])
    erased, _ = steps(model, features, [1, 5, 7], Intervention(erase=(1, 3)))
    for t in (0, 1):
        torch.testing.assert_close(erased[t][0], plain[t][0])
    (h, _), x = plain[1][1][:2], model.word_embedding(torch.tensor([7]))
    (wanted, _), _ = model.cell.step(x, (h, torch.zeros_like(h)), h)
    torch.testing.assert_close(erased[2][1][0], wanted)


def test_attention_can_be_uniform_or_fixed():
    model, features = captioner("attn")
    uniform, _ = steps(model, features, [1, 5], Intervention(attention="uniform"))
    fixed, _ = steps(model, features, [1, 5], Intervention(attention=(1, 2)))
    A = model.project_features(features)
    for states, seen in ((uniform, A.mean((2, 3))), (fixed, A[:, :, 1, 2])):
        state = model.cell.start(A)
        for t, word in enumerate((1, 5)):
            h, c = model.cell.step_forward(model.word_embedding(torch.tensor([word])), *state, seen)
            torch.testing.assert_close(states[t][1][0], h)
            state = (h, c)
    torch.testing.assert_close(uniform[0][2], torch.full((1, *GRID), 1 / 6, dtype=torch.float64))
    assert fixed[0][2][0].argmax().item() == 5 and fixed[0][2].sum() == 1


@pytest.mark.parametrize("cell", CELLS)
def test_another_picture_from_a_word_on_and_another_first_state(cell):
    model, features = captioner(cell)
    other = torch.randn_like(features)
    plain, _ = steps(model, features, [1, 5, 7])
    late, _ = steps(model, features, [1, 5, 7], Intervention(other=other, other_from=3))
    torch.testing.assert_close(late[1][0], plain[1][0])
    uses_grid = REGISTRY[cell].uses_grid
    assert torch.allclose(late[2][0], plain[2][0]) != uses_grid  # only a cell with attention looks again
    started, _ = steps(model, features, [1], Intervention(start=other))
    if uses_grid:  # the first state of the other image, and the grid of this one
        state, _ = model.start(other)
        wanted, _, _ = model.step(torch.tensor([1]), state, model.project_features(features))
    else:
        wanted = steps(model, other, [1])[0][0][0]
    torch.testing.assert_close(started[0][0], wanted)


@pytest.mark.parametrize(
    ("cell", "intervention", "sentence"),
    [
        ("rnn", Intervention(gates={"forget": 1}), "has no 'forget'; its gates are none"),
        ("gru", Intervention(gates={"forget": 1}), "its gates are reset gate r, update gate z"),
        ("lstm", Intervention(gates={"forget": 1.5}), "a gate is between 0 and 1, and 1.5 is not"),
        ("lstm", Intervention(gates={("forget", 7): 1}), "there is no unit 7: the cell has 7, from 0 to 6"),
        ("lstm", Intervention(attention="uniform"), "the cell lstm has no attention that could be changed"),
        ("rnn", Intervention(erase=(1, 2)), "the cell rnn has 1 states, and 1 is not one"),
        ("attn", Intervention(attention=(2, 0)), "the grid has 2 rows and 3 columns"),
    ],
)
def test_an_intervention_that_a_cell_does_not_have_is_refused(cell, intervention, sentence):
    model, features = captioner(cell)
    with pytest.raises(InputError, match=sentence):
        Intervened(model, intervention).start(features)


@pytest.mark.parametrize("decoding", SEARCHES, ids=["greedy", "beam", "sampling"])
def test_every_search_writes_captions_under_an_intervention(decoding):
    model, features = captioner("attn")
    features = features.repeat(4, 1, 1, 1)
    change = Intervention(gates={"forget": 0.5}, erase=(1, 2), attention="uniform", other=features[:1], other_from=2)
    found = write(Intervened(model, change), features, decoding)
    assert found.captions.shape == (4, decoding.max_length) and found.log_probs.isfinite().all()
