"""What the pages show is true: worked numbers, plain versions, diagrams, exercises, the order of the tags."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from docs.scripts import characters, diagrams, memory, numbers, vanishing
from rnn_lstm_captioning import (
    Decoding,
    dot_product_attention,
    dot_product_attention_backward,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
    temporal_softmax_loss,
)
from rnn_lstm_captioning.model.decoding import decode

DOCS = Path(__file__).parents[1] / "docs"
LESSONS = ["pictures", "rnn", "gradients", "lstm", "gru", "attention", "loss", "decoding", "metrics"]


def page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("name", numbers.TABLES)
def test_the_numbers_of_a_page_are_those_of_the_script(name):
    assert numbers.with_numbers(name, page(name)) == page(name), "run python -m docs.scripts.numbers"


@pytest.mark.parametrize(
    ("name", "weights", "forward", "backward"),
    [
        ("rnn", numbers.RNN, rnn_forward, rnn_backward),
        ("lstm", numbers.LSTM, lstm_forward, lstm_backward),
        ("gru", numbers.GRU, gru_forward, gru_backward),
    ],
)
def test_the_numbers_of_a_cell_are_those_of_the_function_that_trains(name, weights, forward, backward):
    def row(value):
        return torch.tensor(value, dtype=torch.float64).reshape(1, -1)

    Wx, Wh, b = row(weights["Wx"]), row(weights["Wh"]), row(weights["b"])[0]
    h, cache = forward(row(numbers.X)[..., None], row(numbers.H0), Wx, Wh, b)
    dx, dh0, dWx, dWh, db = backward(row(numbers.DH_LOSS)[..., None], cache)
    found, back, sums = getattr(numbers, name)()
    torch.testing.assert_close(h.flatten(), row([step["h"] for step in found])[0])
    torch.testing.assert_close(dx.flatten(), row([step["dx"] for step in back])[0])
    torch.testing.assert_close(dh0.flatten(), row(back[0]["dprev_h"])[0])
    for gradient, wanted in ((dWx, sums["dWx"]), (dWh, sums["dWh"]), (db, sums["db"])):
        torch.testing.assert_close(gradient.flatten(), row(wanted)[0])


def test_the_numbers_of_attention_are_those_of_the_function_that_trains():
    def tensor(value):
        return torch.tensor(value, dtype=torch.float64)

    A, query = tensor(numbers.REGIONS).T.reshape(1, 2, 2, 2), tensor([numbers.QUERY])
    found, attn, dq, _ = numbers.attention()
    result, weights = dot_product_attention(query, A)
    dquery, dA = dot_product_attention_backward(tensor([numbers.DATTN]), query, A, weights)
    for ours, wanted in ((result, attn), (weights, found["w"]), (dquery, dq), (dA.flatten(2)[0], found["dA"])):
        torch.testing.assert_close(ours.reshape(tensor(wanted).shape), tensor(wanted))


def test_the_numbers_of_the_loss_are_those_of_the_function_that_trains():
    scores = torch.tensor([[numbers.SCORES]], dtype=torch.float64, requires_grad=True)
    loss = temporal_softmax_loss(scores, torch.tensor([[numbers.RIGHT]]))
    loss.backward()
    _, nats, gradient = numbers.loss()
    assert loss.item() == pytest.approx(nats)
    torch.testing.assert_close(scores.grad[0, 0], torch.tensor(gradient, dtype=torch.float64))


# ----------------------------------------------------------------------------------- plain versions


def plain(name):
    """The functions of the page's block of plain numpy."""
    (block,) = re.findall(rf"```python\n(import numpy[^`]*def plain_{name}\(.*?)```", page(name), re.DOTALL)
    functions = {}
    exec(block, functions)
    return functions


@pytest.mark.parametrize(
    ("name", "gates", "forward"), [("rnn", 1, rnn_forward), ("lstm", 4, lstm_forward), ("gru", 3, gru_forward)]
)
def test_the_plain_version_of_a_cell_equals_the_fast_one(name, gates, forward):
    torch.manual_seed(0)
    N, T, D, H = 3, 4, 5, 6
    shapes = ((N, T, D), (N, H), (D, gates * H), (H, gates * H), (gates * H,))
    arguments = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    found = plain(name)[f"plain_{name}"](*(tensor.numpy() for tensor in arguments))
    np.testing.assert_allclose(found, forward(*arguments)[0], rtol=1e-12)


def test_the_plain_backward_of_the_rnn_equals_the_fast_one():
    torch.manual_seed(0)
    shapes = ((3, 4, 5), (3, 6), (5, 6), (6, 6), (6,))
    x, h0, Wx, Wh, b = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    h, cache = rnn_forward(x, h0, Wx, Wh, b)
    dh = torch.randn_like(h)
    found = plain("rnn")["plain_rnn_backward"](*(tensor.numpy() for tensor in (dh, h, x, h0, Wx, Wh)))
    for ours, theirs in zip(rnn_backward(dh, cache), found):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_the_plain_backward_of_an_lstm_step_equals_autograd():
    torch.manual_seed(0)
    N, H = 3, 6
    a = torch.randn(N, 4 * H, dtype=torch.float64, requires_grad=True)
    prev_c, dh, dc = (torch.randn(N, H, dtype=torch.float64, requires_grad=k == 0) for k in range(3))
    i, f, o = a[:, : 3 * H].sigmoid().chunk(3, dim=1)
    g = a[:, 3 * H :].tanh()
    c = f * prev_c + i * g
    torch.autograd.backward([o * c.tanh(), c], [dh, dc])
    values = (tensor.detach().numpy() for tensor in (dh, dc, prev_c, i, f, o, g, c.tanh()))
    da, dprev_c = plain("lstm")["plain_lstm_step_backward"](*values)
    np.testing.assert_allclose(da, a.grad, rtol=1e-10)
    np.testing.assert_allclose(dprev_c, prev_c.grad, rtol=1e-10)


def test_the_plain_attention_equals_the_fast_one():
    torch.manual_seed(0)
    query, A, dattn = (torch.randn(*s, dtype=torch.float64) for s in ((3, 6), (3, 6, 2, 4), (3, 6)))
    functions = plain("attention")
    regions = A.flatten(2).transpose(1, 2).numpy()
    attn, weights = functions["plain_attention"](query.numpy(), regions)
    wanted, wanted_weights = dot_product_attention(query, A)
    np.testing.assert_allclose(attn, wanted, rtol=1e-12)
    np.testing.assert_allclose(weights, wanted_weights.flatten(1), rtol=1e-12)
    dquery, dregions = functions["plain_attention_backward"](dattn.numpy(), weights, query.numpy(), regions)
    wanted_dquery, dA = dot_product_attention_backward(dattn, query, A, wanted_weights)
    np.testing.assert_allclose(dquery, wanted_dquery, rtol=1e-10)
    np.testing.assert_allclose(dregions, dA.flatten(2).transpose(1, 2), rtol=1e-10)


# ---------------------------------------------------------------------------- diagrams and the pages


@pytest.mark.parametrize("draw", diagrams.DIAGRAMS, ids=lambda draw: draw.__name__)
def test_a_diagram_is_what_its_script_draws(draw):
    drawing = draw()
    file = DOCS / f"images/{drawing.name}.svg"
    assert file.read_text(encoding="utf-8") == drawing.xml(), "run python -m docs.scripts.diagrams"


@pytest.mark.parametrize("file", sorted((DOCS / "images").glob("*.svg")), ids=lambda file: file.stem)
def test_a_diagram_has_a_description_readable_text_and_tags_that_exist(file):
    text = file.read_text(encoding="utf-8")
    assert len(re.search(r"<desc[^>]*>(.*?)</desc>", text).group(1)) > 100
    width = int(re.search(r'viewBox="0 0 (\d+)', text).group(1))
    sizes = [int(size) for size in re.findall(r'<text[^>]*font-size="(\d+)"', text)]
    assert min(sizes) * 360 / width >= 13  # pixels on a phone
    for tag in re.findall(r"\b(?:RNN|LSTM|GRU|ATT|LOSS|EMB|AFF)-\d+", text):
        assert any(f"({tag})" in page(name) for name in LESSONS), tag


@pytest.mark.parametrize("file", sorted((DOCS / "images").glob("*.svg")), ids=lambda file: file.stem)
def test_a_diagram_is_shown_by_a_page(file):
    assert any(f"images/{file.name}" in page(name) for name in LESSONS)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_has_exercises_with_folded_answers_and_something_to_read_next(name):
    text = page(name)
    exercises = text.split("## Exercises")[1].split("## What to read next")[0]
    numbered = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", exercises, re.MULTILINE)]
    assert 3 <= len(numbered) <= 7 and numbered == list(range(1, len(numbered) + 1))
    answers = exercises.count("<details><summary>Answer</summary>\n\n")  # without the empty line no Markdown inside
    assert answers == exercises.count("\n\n</details>") == len(numbered) - exercises.count("check mine.py`")


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "attention"])
def test_the_tags_of_a_page_are_in_order(name):
    tags = [int(number) for number in re.findall(r"\\text\{\([A-Z]+-(\d+)\)\}", page(name))]
    assert tags == list(range(1, len(tags) + 1))


# --------------------------------------------------------------------------------------- experiments


def test_the_gradient_vanishes_stays_or_explodes_as_the_page_says():
    left = {scale: vanishing.rnn_norms(scale)[50] / vanishing.rnn_norms(scale)[0] for scale in (0.5, 1.0, 2.0)}
    assert left[0.5] < 1e-12 and 0.05 < left[1.0] < 1 and left[2.0] > 100
    for bias, low, high in ((0.0, 1e-12, 1e-9), (1.0, 1e-6, 1e-3), (3.0, 0.1, 1)):
        whole, alone = vanishing.lstm_norms(bias)
        assert low < whole[50] / whole[0] < high
        assert alone[50] / alone[0] < 0.2 * whole[50] / whole[0]  # most of it changes between h and c


def test_the_gradient_is_the_product_of_the_page():
    """dh_{t-k} = dh_t times the product of diag(1 - h^2) Wh^T."""
    cell = vanishing.rnn_with_scale(1.0).double()
    x = torch.randn(1, 5, vanishing.D, dtype=torch.float64)
    h0 = torch.zeros(1, vanishing.H, dtype=torch.float64, requires_grad=True)
    h = cell(x, h0)
    dh = torch.randn(1, vanishing.H, dtype=torch.float64)
    h[:, -1].backward(dh)
    product = dh
    for state in reversed(h[0].detach()):
        product = product @ torch.diag(1 - state**2) @ cell.Wh.detach().T
    torch.testing.assert_close(h0.grad, product)


def test_the_memory_task_asks_for_the_first_symbol_and_can_be_learned():
    symbols, answers = memory.sequences(50, 7)
    assert torch.equal(symbols[:, 0], answers[:, 0]) and (answers < memory.SYMBOLS).all()
    assert (symbols[:, 1:] >= memory.SYMBOLS).all()
    assert memory.accuracy("gru", 3, steps=120) > 0.9


def test_the_character_model_learns_and_writes():
    text = "the cell reads a word and the cell writes a word. " * 40
    model = characters.CharacterModel("gru", "".join(sorted(set(text))))
    losses = characters.train(model, text, seconds=1.5)
    assert losses[0] == pytest.approx(np.log(len(model.characters)), abs=0.3) and losses[-1] < losses[0] - 0.5
    written = model.write("the cell", 30)
    assert len(written) == 38 and written.startswith("the cell") and set(written) <= set(text)


class SmallLanguage:
    """The example of docs/decoding.md as a captioner: the probabilities of the next word, given the last one."""

    words = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "two", "dog", "cat", "bird", "dogs"]
    after = {
        "<START>": {"a": 0.6, "two": 0.4},
        "a": {"dog": 0.4, "cat": 0.3, "bird": 0.3},
        "two": {"dogs": 0.9, "<END>": 0.1},
        **{word: {"<END>": 1.0} for word in ("dog", "cat", "bird", "dogs")},
    }

    def start(self, features):
        return (features.flatten(1),), features

    def step(self, words, state, image):
        probabilities = torch.zeros(len(words), len(self.words))
        for row, word in enumerate(words.tolist()):
            for following, p in self.after.get(self.words[word], {"<END>": 1.0}).items():
                probabilities[row, self.words.index(following)] = p
        return probabilities.clamp(min=1e-9).log(), state, None


@pytest.mark.parametrize(("width", "caption", "probability"), [(1, "a dog", 0.24), (2, "two dogs", 0.36)])
def test_greedy_search_loses_in_the_example_of_the_page(width, caption, probability):
    found = decode(SmallLanguage(), torch.zeros(1, 1, 1, 1), Decoding(beam=width))
    written = [SmallLanguage.words[index] for index in found.captions[0].tolist() if index not in (0, 2)]
    assert " ".join(written) == caption
    assert found.log_probs.exp().item() == pytest.approx(probability, abs=1e-4)
    assert f"{probability}$" in page("decoding")


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "attention"])
def test_the_excerpts_of_a_page_are_lines_of_the_code(name):
    code = (DOCS.parent / f"rnn_lstm_captioning/cells/{name}.py").read_text(encoding="utf-8")
    lines = {line.strip() for line in code.splitlines()}
    blocks = [
        b for b in re.findall(r"```python\n(.*?)```", page(name), re.DOTALL) if "import " not in b and "assert" not in b
    ]
    assert blocks
    for line in "".join(blocks).splitlines():
        assert not line.strip() or line.strip() in lines, line
