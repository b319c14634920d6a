"""The checker finds and names planted mistakes, and reports none in right solutions."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import SOLUTION

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.classroom.checking import check_file, check_functions
from rnn_lstm_captioning.classroom.ladder import LADDER
from rnn_lstm_captioning.classroom.plain_cells import ORDER
from rnn_lstm_captioning.classroom.puzzles import PUZZLES, source_of, write_puzzle
from rnn_lstm_captioning.commands.check import main

LEARNERS = Path(__file__).parent / "learners"
RIGHT = SOLUTION.read_text()


def report_on(text, folder):
    """{function: (outcome, message)} for a learner's file."""
    (folder / "mine.py").write_text(text)
    report = {}
    check_functions(str(folder / "mine.py"), lambda name, *outcome: report.update({name: outcome}))
    del report["the import"]
    return {name: (outcome.replace("failed", "wrong"), message) for name, (outcome, message) in report.items()}


@pytest.mark.parametrize("file", [SOLUTION, LEARNERS / "in_torch.py"], ids=["numpy", "torch"])
def test_right_solutions_raise_no_false_alarm(file, tmp_path):
    found = report_on(file.read_text(), tmp_path)
    remark = "but it takes the logarithm of a probability that is 0: use log_softmax, or logsumexp"
    assert set(found.values()) <= {("right", ""), ("right", remark)}
    if file == SOLUTION:  # the other file may leave functions out
        assert set(ORDER) - set(found) <= {"attention_step_backward"}


def test_our_own_cells_are_right(tmp_path):
    ours = "from rnn_lstm_captioning.cells import *\nfrom rnn_lstm_captioning import temporal_softmax_loss\n"
    assert set(report_on(ours, tmp_path).values()) == {("right", "but it uses functions of rnn_lstm_captioning")}


def within(function, *changes):
    """The right solution with one function changed; each change is (old, new)."""
    start = RIGHT.index(f"def {function}(")
    end = RIGHT.find("\ndef ", start + 1)
    end = len(RIGHT) if end < 0 else end
    body = RIGHT[start:end]
    for old, new in changes:
        assert old in body, f"{old} is not in {function}"
        body = body.replace(old, new)
    return RIGHT[:start] + body + RIGHT[end:]


# function, old, new, what the diagnosis must say (None: it is enough that the function is called wrong)
PLANTED = [
    ("rnn_step_forward", "+ b", "", "bias b is forgotten"),
    ("rnn_step_forward", "prev_h.dot(Wh)", "prev_h.dot(Wh.T)", "Wh is transposed"),
    ("rnn_step_forward", "np.tanh(a)", "a", "tanh is missing"),
    ("rnn_step_forward", "np.tanh(a)", "sigmoid(a)", "sigmoid where tanh belongs"),
    ("rnn_step_forward", " + prev_h.dot(Wh)", "", "h Wh is missing"),
    ("rnn_step_forward", "a = x", "x += 1; a = x", "changes its argument x in place"),
    ("rnn_step_forward", "np.tanh(a)", "np.tanh(a) + 1e-4", None),
    ("rnn_step_backward", "(1 - next_h**2)", "1", "derivative of tanh is missing"),
    ("rnn_step_backward", "(1 - next_h**2)", "(1 - np.tanh(next_h)**2)", "uses the wrong value"),
    ("rnn_step_backward", "(1 - next_h**2)", "(1 - a**2)", "1 - a^2 instead of"),
    ("rnn_step_backward", "(1 - next_h**2)", "(1 - prev_h**2)", "the state before the step"),
    ("rnn_step_backward", "(1 - next_h**2)", "(1 - next_h)", "square is missing"),
    ("rnn_step_backward", "da.dot(Wh.T)", "da.dot(Wh)", "dprev_h needs Wh transposed"),
    ("rnn_step_backward", "prev_h.T.dot(da)", "next_h.T.dot(da)", "state after the step"),
    ("rnn_step_backward", "da.sum(axis=0)", "da.mean(axis=0)", "averaged over the batch"),
    ("rnn_step_backward", "da.sum(axis=0)", "da.sum(axis=1)", "db has shape"),
    ("rnn_step_backward", "x.T.dot(da)", "da.T.dot(x)", "it is transposed"),
    ("rnn_step_backward", "dWx, dWh, db", "dWh, dWx, db", "results are in the wrong order"),
    ("rnn_step_backward", "da = dnext_h * (", "dnext_h *= (", None),
    ("rnn_forward", "x[:, t], prev_h,", "x[:, t], h0,", "h_t is not carried"),
    ("rnn_forward", "range(T)", "range(T - 1)", "last time step is skipped"),
    ("rnn_forward", "range(T)", "reversed(range(T))", "from the last to the first"),
    ("rnn_backward", "dh[:, t] + dprev_h", "dh[:, t]", "not carried"),
    ("rnn_backward", "reversed(range(T))", "reversed(range(1, T))", "first time step is skipped"),
    ("rnn_backward", "reversed(range(T))", "reversed(range(T - 1))", "last time step is skipped"),
    ("rnn_backward", "+= d", "= d", "overwritten"),
    ("lstm_step_forward", "+ b", "", "bias b is forgotten"),
    ("lstm_step_forward", "o * np.tanh(next_c)", "o * next_c", "tanh is missing on the cell state"),
    ("lstm_step_forward", "g = np.tanh(", "g = sigmoid(", "g has a sigmoid"),
    ("lstm_step_forward", "f * prev_c + i * g", "i * prev_c + f * g", "the gates are swapped: they are f i o g"),
    ("lstm_step_forward", "f * prev_c + i * g", "f * prev_c + g", "input gate is missing"),
    ("lstm_step_forward", "f * prev_c + i * g", "i * g", "previous cell state is dropped"),
    ("lstm_step_forward", "return next_h, next_c", "return next_c, next_h", "wrong order"),
    ("lstm_step_backward", "dnext_c + dnext_h", "dnext_h", "dnext_c is ignored"),
    ("lstm_step_backward", "dnext_c + dnext_h * o * (1 - tanh_c**2)", "dnext_c", "path from dh into the cell state"),
    ("lstm_step_backward", "(1 - tanh_c**2)", "(1 - next_c**2)", "1 - c^2 instead of"),
    ("lstm_step_backward", " * (1 - tanh_c**2)", "", "derivative of tanh(c) is missing"),
    ("lstm_step_backward", "dc * prev_c", "dc * next_c", "the cell state after the step"),
    ("lstm_step_backward", "dprev_c = dc * f", "dprev_c = dc", "dprev_c needs the forget gate"),
    ("lstm_step_backward", "di * i * (1 - i), df * f * (1 - f), do * o * (1 - o)", "di, df, do", "derivative of the sigmoids"),
    ("lstm_step_backward", "dg * (1 - g**2)", "dg * g * (1 - g)", "g is a tanh"),
    ("lstm_step_backward", "dg * (1 - g**2)", "dg * (1 - g)", "square is missing in the derivative of g"),
    ("lstm_step_backward", "df * f * (1 - f)", "df * f", "f * (1 - f), not f alone"),
    ("lstm_step_backward", "do * o * (1 - o)", "do", "sigmoid is missing on o"),
    ("lstm_step_backward", "dg = dc * i", "dg = dc * f", "da_g uses the forget gate"),
    ("lstm_step_backward", "dprev_c = dc * f", "dprev_c = dc * o", "dprev_c uses the output gate"),
    ("lstm_step_backward", "prev_h.T.dot(da)", "(o * tanh_c).T.dot(da)", "state after the step"),
    ("lstm_step_backward", "di = dc * g\n    df = dc * prev_c", "di = dc\n    df = dc", "look at da of i, f"),
    ("lstm_step_backward", "di * i * (1 - i), df * f * (1 - f)", "df * f * (1 - f), di * i * (1 - i)", "gradients are swapped"),
    ("lstm_forward", "np.zeros_like(h0)", "h0", "c0 must be zero"),
    ("lstm_forward", "prev_h, prev_c, step =", "prev_h, _, step =", "cell state is not carried"),
    ("lstm_backward", "dprev_c, dWx_t", "_, dWx_t", "gradient of the cell state is not carried"),
    ("lstm_backward", "dh[:, t] + dprev_h", "dh[:, t]", "gradient of h_{t-1} is not carried"),
    ("gru_step_forward", "+ b", "", "bias b is forgotten"),
    ("gru_step_forward", "r * u_n", "u_n", "reset gate is missing"),
    ("gru_step_forward", "+ r * u_n", "+ (r * prev_h).dot(Wh[:, 2 * H :])", "multiplies h before the product"),
    ("gru_step_forward", "p[:, 2 * H :] + r * u_n", "r * (p[:, 2 * H :] + u_n)", "multiplies x Wx + b too"),
    ("gru_step_forward", "(1 - z) * n + z * prev_h", "z * n + (1 - z) * prev_h", "z and 1 - z are swapped"),
    ("gru_step_forward", "(1 - z) * n + z * prev_h", "n + z * prev_h", "not multiplied by 1 - z"),
    ("gru_step_forward", " + z * prev_h", "", "previous state is dropped"),
    ("gru_step_forward", "n = np.tanh(", "n = sigmoid(", "n has a sigmoid"),
    ("gru_step_forward", "n = np.tanh(", "n = (", "tanh is missing on n"),
    ("gru_step_forward", "r = sigmoid(p[:, :H] + u[:, :H])\n    z = sigmoid(p[:, H : 2 * H] + u[:, H : 2 * H])", "z = sigmoid(p[:, :H] + u[:, :H])\n    r = sigmoid(p[:, H : 2 * H] + u[:, H : 2 * H])", "they are z r n instead of r z n"),
    ("gru_step_forward", "sigmoid(", "(", "sigmoids of r and z are missing"),
    ("gru_step_backward", " + dnext_h * z", "", "direct path is missing"),
    ("gru_step_backward", " + dnext_h * z", " + dnext_h * (1 - z)", "direct path uses 1 - z"),
    ("gru_step_backward", "da_n * r])", "da_n])", "reset gate is missing in du_n"),
    ("gru_step_backward", "prev_h.T.dot(du)", "prev_h.T.dot(dp)", "dWh uses da_n"),
    ("gru_step_backward", "(prev_h - n)", "(n - prev_h)", "dz has the wrong sign"),
    ("gru_step_backward", "(prev_h - n)", "prev_h", "a part of dz is missing"),
    ("gru_step_backward", "dnext_h * (1 - z)", "dnext_h * z", "dn uses z"),
    ("gru_step_backward", "dr = da_n * u_n", "dr = 0 * u_n", "path through the reset gate"),
    ("gru_step_backward", "(1 - n**2)", "1", "derivative of n's tanh is missing"),
    ("gru_step_backward", "(1 - n**2)", "(1 - n)", "square is missing in the derivative of n"),
    ("gru_step_backward", " * r * (1 - r)", " * r", "r * (1 - r), not r alone"),
    ("gru_step_backward", " * z * (1 - z)", "", "sigmoid is missing on z"),
    ("gru_step_backward", "du.dot(Wh.T)", "dp.dot(Wh.T)", None),
    ("gru_step_backward", "prev_h.T.dot(du)", "((1 - z) * n + z * prev_h).T.dot(du)", "state after the step"),
    ("gru_backward", "dh[:, t] + dprev_h", "dh[:, t]", "not carried"),
    ("gru_forward", "x[:, t], prev_h,", "x[:, t], h0,", "h_t is not carried"),
    ("dot_product_attention", " / np.sqrt(H)", "", "not divided by sqrt(H)"),
    ("dot_product_attention", "np.sqrt(H)", "np.sqrt(gh * gw)", "the wrong square root"),
    ("dot_product_attention", "softmax(scores)", "softmax(scores.T).T", "over the wrong axis"),
    ("dot_product_attention", "w.reshape(N, gh, gw)", "scores.reshape(N, gh, gw)", None),
    ("attention_step_forward", "+ attn.dot(Wattn)", "", "attn Wattn is missing"),
    ("attention_forward", "h0 = A.mean(axis=(2, 3))", "h0 = 0 * A.mean(axis=(2, 3))", None),
    ("attention_forward", "prev_h, prev_c, cache = h0, h0, []", "prev_h, prev_c, cache = h0, 0 * h0, []", "c0 must be the mean"),
    ("attention_backward", "dprev_h = dprev_h + np", "dprev_h + np", "the attention's query"),
    ("attention_backward", "(dw - (w * dw).sum(axis=1, keepdims=True))", "dw", "softmax's derivative is incomplete"),
    ("attention_backward", '        dregions += np.einsum("ng,nh->nhg", ds, query)\n', "", "comes through the scores"),
    ("attention_backward", "dregions += ((dprev_h", "0 * ((dprev_h", "comes through h0 and c0"),
    ("temporal_softmax_loss", "losses.sum() / N", "losses.mean()", "mean over N and T"),
    ("temporal_softmax_loss", "losses.sum() / N", "losses.sum()", "summed over the batch too"),
    ("temporal_softmax_loss", "* (words != ignore_index)", "", "NULL is counted"),
    ("temporal_softmax_loss", "ignore_index is not None:", "True:\n        ignore_index = ignore_index or 0", "even when"),
    ("temporal_softmax_loss", "-np.log(", "np.log(", "the sign is wrong"),
]  # fmt: skip


def test_there_are_enough_planted_mistakes():
    assert len(PLANTED) >= 40 and sum(diagnosis is not None for *_, diagnosis in PLANTED) >= 30


@pytest.mark.parametrize("function, old, new, diagnosis", PLANTED, ids=[f"{p[0]}-{k}" for k, p in enumerate(PLANTED)])
def test_a_planted_mistake_is_found_and_named(function, old, new, diagnosis, tmp_path):
    outcome, message = report_on(within(function, (old, new)), tmp_path)[function]
    assert outcome == "wrong"
    assert diagnosis is None or diagnosis in message, message


PAIRS = [
    ("rnn_step_forward", [("+ b", ""), ("np.tanh(a)", "a")], ["bias b is forgotten", "tanh is missing"]),
    ("rnn_step_backward", [("(1 - next_h**2)", "1"), ("da.sum(axis=0)", "da.mean(axis=0)")], ["derivative of tanh is missing", "db is averaged"]),
    ("lstm_step_forward", [("+ b", ""), ("o * np.tanh(next_c)", "o * next_c")], ["bias b is forgotten", "tanh is missing on the cell state"]),
    ("lstm_step_forward", [("g = np.tanh(", "g = sigmoid("), ("f * prev_c + i * g", "i * prev_c + f * g")], ["g has a sigmoid", "gates are swapped"]),
    ("lstm_step_backward", [("dg * (1 - g**2)", "dg"), ("dprev_c = dc * f", "dprev_c = dc")], ["g's tanh is missing", "dprev_c needs the forget gate"]),
    ("lstm_backward", [("dh[:, t] + dprev_h", "dh[:, t]"), ("+= d", "= d")], ["not carried", "overwritten"]),
    ("dot_product_attention", [(" / np.sqrt(H)", ""), ("softmax(scores)", "softmax(scores.T).T")], ["not divided by sqrt(H)", "wrong axis"]),
    ("temporal_softmax_loss", [("losses.sum() / N", "losses.mean()"), ("* (words != ignore_index)", "")], ["it is the mean over", "NULL is counted"]),
]  # fmt: skip


@pytest.mark.parametrize("function, changes, diagnoses", PAIRS, ids=[f"{p[0]}-{k}" for k, p in enumerate(PAIRS)])
def test_two_mistakes_at_once_are_both_named(function, changes, diagnoses, tmp_path):
    outcome, message = report_on(within(function, *changes), tmp_path)[function]
    assert outcome == "wrong" and "two mistakes" in message
    assert all(diagnosis in message for diagnosis in diagnoses), message


def test_a_sequence_is_not_blamed_for_its_step(tmp_path):
    found = report_on(within("lstm_step_forward", ("np.tanh(next_c)", "np.tanh(next_c) + 1e-3")), tmp_path)
    assert "no known mistake gives these values" in found["lstm_step_forward"][1]
    assert found["lstm_forward"] == ("waits", "right on its own: correct your lstm_step_forward first")


def loss_of(body):
    return f"""
import numpy as np
import torch

def temporal_softmax_loss({body}
"""


EECS = """x, y, ignore_index=None):
    n = len(x)
    x, y = x.flatten(0, 1), y.flatten()
    return torch.nn.functional.cross_entropy(x, y, reduction="sum", ignore_index=ignore_index) / n
"""
CS231N = """x, y, mask, verbose=False):
    N, T, V = x.shape
    x_flat, y_flat, mask_flat = x.reshape(N * T, V), y.reshape(N * T), mask.reshape(N * T)
    probs = np.exp(x_flat - np.max(x_flat, axis=1, keepdims=True))
    probs /= np.sum(probs, axis=1, keepdims=True)
    loss = -np.sum(mask_flat * np.log(probs[np.arange(N * T), y_flat])) / N
    dx_flat = probs.copy()
    dx_flat[np.arange(N * T), y_flat] -= 1
    dx_flat /= N
    dx_flat *= mask_flat[:, None]
    return loss, dx_flat.reshape(N, T, V)
"""


def test_the_losses_of_both_courses_are_checked_as_they_are(tmp_path):
    assert report_on(loss_of(EECS), tmp_path)["temporal_softmax_loss"] == ("right", "")
    cs231n = report_on(loss_of(CS231N), tmp_path)["temporal_softmax_loss"]
    assert cs231n[0] == "right" and "logarithm of a probability that is 0" in cs231n[1]
    wrong = report_on(loss_of(CS231N.replace("dx_flat /= N\n", "pass\n")), tmp_path)["temporal_softmax_loss"]
    assert wrong[0] == "wrong" and "dx is off" in wrong[1] and "averaged over the N captions" in wrong[1]
    wrong = report_on(loss_of(CS231N.replace("x_flat - np.max(x_flat, axis=1, keepdims=True)", "x_flat")), tmp_path)
    assert wrong["temporal_softmax_loss"][0] == "right" and "it overflows" in wrong["temporal_softmax_loss"][1]


def test_a_softmax_that_overflows_is_reported(tmp_path):
    found = report_on(RIGHT.replace("- scores.max(axis=1, keepdims=True)", ""), tmp_path)["dot_product_attention"]
    assert found[0] == "right" and "it overflows" in found[1]


def test_a_backward_is_not_blamed_for_a_forward_that_fails(tmp_path):
    for old, new in (("np.tanh(a)", "np.tahn(a)"), ("return next_h, (x", "return 'h'; (x")):
        found = report_on(within("rnn_step_forward", (old, new)), tmp_path)
        assert found["rnn_step_forward"][0] == "wrong"
        assert found["rnn_step_backward"] == (
            "unchecked", "it needs the cache of your own rnn_step_forward, which fails",
        )  # fmt: skip
    unwritten = RIGHT.replace("def rnn_step_forward(x, prev_h, Wx, Wh, b):", "def rnn_step_forward(*_):\n    raise NotImplementedError\n\n\ndef old(x, prev_h, Wx, Wh, b):")  # fmt: skip  # noqa: E501
    assert report_on(unwritten, tmp_path)["rnn_step_backward"][1].endswith("which is not written yet")


def test_a_right_da_is_not_blamed(tmp_path):
    found = report_on(within("lstm_step_backward", ("da.sum(axis=0)", "1.001 * da.sum(axis=0)")), tmp_path)
    assert "db is off" in found["lstm_step_backward"][1] and "so da is too" in found["lstm_step_backward"][1]


def test_a_backward_without_its_forward_is_not_checked(tmp_path):
    start, end = RIGHT.index("def rnn_step_forward"), RIGHT.index("def rnn_step_backward")
    found = report_on(RIGHT[:start] + RIGHT[end:], tmp_path)
    assert found["rnn_step_backward"] == (
        "unchecked", "it needs the cache of your own rnn_step_forward, which is not in the file",
    )  # fmt: skip
    assert found["lstm_backward"] == ("right", "")


def test_a_right_backward_of_a_wrong_forward_is_right(tmp_path):
    text = within("rnn_step_forward", ("+ b", "+ 2 * b")).replace("db = da.sum(axis=0)\n    return dx, dprev_h", "db = 2 * da.sum(axis=0)\n    return dx, dprev_h")  # fmt: skip  # noqa: E501
    found = report_on(text, tmp_path)
    assert found["rnn_step_forward"][0] == "wrong"
    assert found["rnn_step_backward"][0] == "waits" and "gradient of your own" in found["rnn_step_backward"][1]
    found = report_on(within("rnn_step_forward", ("+ b", "+ 2 * b")), tmp_path)
    assert found["rnn_step_backward"] == ("waits", "right on its own: correct your rnn_step_forward first")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("return next_h, (x", "return next_h, next_h, (x", "it returns 3 values, wanted next_h, cache"),
        ("np.tanh(a)", "np.tahn(a)", "it raised AttributeError in line "),
        ("np.tanh(a)", "'text'", "its result next_h is a str"),
        ("np.tanh(a)", "np.tanh(a) * np.nan", "next_h is not finite"),
        ("np.tanh(a)", "np.tanh(a)[:, :1]", "next_h has shape (3, 1), wanted (3, 7)"),
    ],
)
def test_other_mistakes_are_described(old, new, message, tmp_path):
    outcome, found = report_on(within("rnn_step_forward", (old, new)), tmp_path)["rnn_step_forward"]
    assert outcome == "wrong" and message in found


def run(*arguments):
    command = [sys.executable, "-m", "rnn_lstm_captioning", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1000)


def test_the_command_reports_by_exit_code_and_keeps_its_time_limit(tmp_path):
    mine = tmp_path / "mine.py"
    assert run("--new", mine).returncode == 0
    again = run("--new", mine)
    assert again.returncode == 2 and "does not overwrite it" in again.stderr
    start = time.monotonic()
    empty = run(mine)
    limit = 3 + time.monotonic() - start
    assert (
        empty.returncode == 2
        and "not written yet" in empty.stdout
        and "none of its functions filled in" in empty.stderr
    )
    mine.write_text(within("rnn_backward", ("for t in", "while True:\n        pass\n    for t in")))
    endless = run(mine, "--timeout", limit)
    assert endless.returncode == 1
    assert "rnn_backward               WRONG: it did not finish within" in endless.stdout
    number = len(re.findall(rf"^def ({'|'.join(ORDER)})\(", RIGHT, re.MULTILINE))
    assert f"{number - 1} right, 1 wrong" in endless.stdout  # the other functions are checked nevertheless
    mine.write_text(
        RIGHT.replace("def rnn_forward(x, h0, Wx, Wh, b):", "def rnn_forward(x, h0, Wx, Wh, b):\n    exit(3)")
    )
    ended = run(mine, "--need", "lstm_step_forward")
    assert ended.returncode == 1 and "it raised SystemExit in line" in ended.stdout
    assert f"{number - 2} right, 1 wrong, 1 not checked" in ended.stdout
    mine.write_text(loss_of(EECS))
    assert run(mine, "--need", "temporal_softmax_loss").returncode == 0
    needed = run(mine, "--need", "temporal_softmax_loss", "rnn_step_forward")
    assert needed.returncode == 1 and "needed and not written: rnn_step_forward" in needed.stdout
    for text, message in (
        ("x = (", "can't be imported: SyntaxError in line 1"),
        ("x = 1", "has none of the functions"),
    ):
        mine.write_text(text)
        unusable = run(mine)
        assert unusable.returncode == 2 and message in unusable.stderr and "Traceback" not in unusable.stderr


BAD_MANNERS = {
    "os._exit(0)": "it ended the whole process (exit code 0)",
    "os.kill(os.getpid(), 9)": "it ended the whole process (signal SIGKILL)",
    "os.kill(os.getpid(), 19)": "it did not finish within",
    "sys.exit('done')": "it raised SystemExit in line",
    "raise KeyboardInterrupt": "it raised KeyboardInterrupt in line",
    "class Odd(Exception): __str__ = None\n    raise Odd": ": (its text can't be printed)",
    "np.zeros(10**10)[:] = 1": "it raised MemoryError in line",
    "f = lambda: f()\n    f()": "it raised RecursionError in line",
    "input()": "it raised EOFError in line",
}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_whatever_a_function_does_to_its_process_the_others_are_judged(tmp_path):
    """One bad habit in each function of a file; and some that are no mistakes: copies of the process, much output."""
    body = "    if TRIED: return right_loss(x, y, ignore_index)\n    TRIED.append(1)\n    os.fork()\n    subprocess.Popen(['sleep', '1000'])\n    print('x' * 100, '\\n[1, 2]')\n    try:\n"
    body += '        for k in range(3, 9): os.write(k, b\'["rnn_forward", "right"]\\n\')\n    except OSError: pass\n'
    loss = RIGHT[RIGHT.index("def temporal_softmax_loss") :]
    text = f"import os, sys, subprocess\nTRIED = []\n{RIGHT}\n\n" + loss.replace("temporal_softmax_loss", "right_loss")
    text += "\n\n" + re.sub(r"(def temporal_softmax_loss\(.*:\n)", lambda m: m[1] + body, loss)
    names = [name for name in ORDER if "backward" not in name and name != "temporal_softmax_loss"][: len(BAD_MANNERS)]
    for name, code in zip(names, BAD_MANNERS):  # the last function of a name counts
        text += f"\ndef {name}(*_):\n    {code}\n"
    (tmp_path / "mine.py").write_text(text)
    start = time.monotonic()
    report_on(RIGHT, tmp_path / "..")
    limit = max(2, 3 * (time.monotonic() - start))  # one function takes less than all, however slow the machine is
    results = {name: (outcome, message) for name, outcome, message in check_file(tmp_path / "mine.py", limit)}
    for name, message in zip(names, BAD_MANNERS.values()):
        assert results[name][0] == "wrong" and message in results[name][1], (name, results[name])
    assert results["temporal_softmax_loss"][0] == "right"
    sleeping = subprocess.run(["pgrep", "-fx", "sleep 1000"], capture_output=True, text=True).stdout
    assert not sleeping


def test_a_short_time_limit_does_not_count_our_own_imports(tmp_path):
    (tmp_path / "mine.py").write_text("import time\ntime.sleep(1)\n" + RIGHT)
    with pytest.raises(InputError, match="can't be imported: it did not finish within 0.001 seconds"):
        list(check_file(tmp_path / "mine.py", 0.001))


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file; --new"):
        main([str(tmp_path / "none.py")])
    with pytest.raises(InputError, match="has no Python files; --new"):
        main([str(tmp_path)])
    with pytest.raises(InputError, match="there is no folder .*none to write mine.py into"):
        main([str(tmp_path / "none" / "mine.py"), "--new"])


# ------------------------------------------------------------------------ every way that students write


STEP = """
{head}
def rnn_step_forward(x, prev_h, Wx, Wh, b):
    {body}
"""
STYLES = {
    "both imports": ("import numpy as np\nimport torch", "h = (x.mm(Wx) + prev_h @ Wh + b).tanh()\n    return h, h"),
    "a torch function alone": ("from torch import tanh", "h = tanh(x @ Wx + prev_h @ Wh + b)\n    return h, h"),
    "methods only": ("", "h = x.mm(Wx).add(prev_h.mm(Wh)).add(b).tanh()\n    return h, h"),
    "numpy's root in torch code": (
        "import numpy as np",
        "H = prev_h.shape[1]\n    h = (x.mm(Wx) * np.sqrt(H) / np.sqrt(H) + prev_h.mm(Wh) + b).tanh()\n    return h, h",
    ),
    "imports inside": ("", "import torch as t\n    h = t.tanh(x @ Wx + prev_h @ Wh + b)\n    return h, h"),
    "nested": ("import numpy as np", "def act(a):\n        return np.tanh(a)\n    h = act(x @ Wx + prev_h @ Wh + b)\n    return h, h"),
    "negative strides": ("import numpy as np", "h = np.tanh(x @ Wx + prev_h @ Wh + b)[::-1].copy()[::-1]\n    return h, h"),
    "lists": ("import numpy as np", "h = np.tanh(x @ Wx + prev_h @ Wh + b)\n    return h.tolist(), [h]"),
    "float32 inside": (
        "import numpy as np",
        "h = np.tanh((x.astype('f') @ Wx.astype('f') + prev_h.astype('f') @ Wh.astype('f') + b)).astype('d')\n    return h, h",
    ),
    "a decorator": (
        "import numpy as np\ndef loud(f):\n    def inner(*args):\n        print('called')\n        return f(*args)\n    return inner\n@loud",
        "h = np.tanh(x @ Wx + prev_h @ Wh + b)\n    return h, h",
    ),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_right_code_in_every_style_is_right(style, tmp_path):
    head, body = STYLES[style]
    assert report_on(STEP.format(head=head, body=body), tmp_path) == {"rnn_step_forward": ("right", "")}


COURSE_CLASS = """
import torch
from torch import nn

class LSTM(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x, prev_h, prev_c):
        i, f, o, g = (x @ self.Wx + prev_h @ self.Wh + self.b).chunk(4, dim=1)
        next_c = f.sigmoid() * prev_c + i.sigmoid() * g.tanh()
        return o.sigmoid() * next_c.tanh(), next_c

    def forward(self, x, h0):
        h, c, hn = h0, torch.zeros_like(h0), []
        for t in range(x.shape[1]):
            h, c = self.step_forward(x[:, t], h, c)
            hn.append(h)
        return torch.stack(hn, dim=1)
"""


def test_the_courses_classes_and_notebooks_are_checked(tmp_path):
    right = ("right", "")
    assert report_on(COURSE_CLASS, tmp_path) == {"lstm_step_forward": right, "lstm_forward": right}
    wrong = report_on(COURSE_CLASS.replace("h, c, hn = h0,", "h, c, hn = 0 * h0,"), tmp_path)
    assert wrong["lstm_step_forward"] == right and "h0 is not used" in wrong["lstm_forward"][1]
    cells = [
        {"cell_type": "markdown", "source": ["# LSTM"]},
        {"cell_type": "code", "source": ["%load_ext autoreload\n", "from eecs598.utils import reset_seed\n"]},
        {"cell_type": "code", "source": ["import torch\n", "SCALE = 1\n", "while True: pass\n"]},
        {"cell_type": "code", "source": COURSE_CLASS.replace("x @ self.Wx", "SCALE * x @ self.Wx").splitlines(True)},
    ]
    (tmp_path / "work.ipynb").write_text(json.dumps({"cells": cells}))
    results = list(check_file(tmp_path / "work.ipynb", 100))
    assert [(name, outcome) for name, outcome, _ in results] == [
        ("lstm_step_forward", "right"),
        ("lstm_forward", "right"),
    ]


STARTER_OF_THE_COURSE = """
def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h, cache = None, None
    # TODO: Implement a single forward step
    pass
    return next_h, cache

def rnn_step_backward(dnext_h, cache):
    dx, dprev_h, dWx, dWh, db = None, None, None, None, None
    return dx, dprev_h, dWx, dWh, db

def temporal_softmax_loss(x, y, ignore_index=None):
    loss = None
    return loss
"""


def test_an_unfilled_starter_of_the_course_is_not_written_yet(tmp_path):
    assert {outcome for outcome, _ in report_on(STARTER_OF_THE_COURSE, tmp_path).values()} == {"todo"}
    half = STARTER_OF_THE_COURSE.replace("dx, dprev_h, dWx, dWh, db = None,", "dx = dnext_h; dprev_h, dWx, dWh, db =")
    found = report_on(RIGHT + half[half.index("def rnn_step_backward") :], tmp_path)
    assert "its result dprev_h is None" in found["rnn_step_backward"][1]


def test_what_works_in_the_course_is_right_with_a_remark(tmp_path):
    square = within("dot_product_attention", ("N, H, gh, gw = A.shape", "N, H, gh, _ = A.shape; gw = gh"))
    found = report_on(square, tmp_path)
    assert found["dot_product_attention"] == ("right", "but it works for square grids only")
    in_place = within("lstm_step_backward", ("dc = dnext_c + dnext_h * o", "dc = dnext_c; dc += dnext_h * o"))
    assert in_place != RIGHT
    found = report_on(in_place, tmp_path)
    remark = "but it changes its argument dnext_c in place: copy it first"
    assert found["lstm_step_backward"] == ("right", remark)


@pytest.mark.parametrize("condition, label", [("", "N = 1"), (" if len(a) > 1 else np.tanh(a)", "H = 1")])
def test_a_squeeze_shows_at_the_size_where_it_matters(condition, label, tmp_path):
    text = within("rnn_step_forward", ("np.tanh(a)", f"np.tanh(a).squeeze(){condition}"))
    assert f"with {label}, " in report_on(text, tmp_path)["rnn_step_forward"][1]


def test_a_textbook_backward_waits_for_its_wrong_forward(tmp_path):
    for old, new in (("+ b", ""), ("np.tanh(next_c)", "next_c"), ("f * prev_c", "prev_c"), ("+ b", "+ b + 0.1")):
        found = report_on(within("lstm_step_forward", (old, new)), tmp_path)
        assert found["lstm_step_forward"][0] == "wrong"
        for name in ("lstm_step_backward", "lstm_forward", "lstm_backward"):
            assert found[name][0] == "waits" and "first" in found[name][1], (old, found[name])


@pytest.mark.parametrize(
    "old, new, diagnosis",
    [
        ("dh[:, t] + dprev_h", "dprev_h", "dh"),
        ("reversed(range(T))", "range(T)", "runs from the first step to the last"),
        ("dprev_h, dprev_c = np.zeros((N, H)), np.zeros((N, H))", "dprev_h = dprev_c = np.zeros((N, H))", None),
        ("+= dWx_t", "= dWx_t / T", None),
    ],
)
def test_a_wrong_loop_around_a_right_step_is_said_to_be_that(old, new, diagnosis, tmp_path):
    found = report_on(within("lstm_backward", (old, new)), tmp_path)
    assert found["lstm_step_backward"] == ("right", "")
    if "dprev_c = np" in new:  # nothing is changed in place in this loop, so it is right
        return
    outcome, message = found["lstm_backward"]
    assert outcome == "wrong" and "da of" not in message
    assert (diagnosis or "your lstm_step_backward is right, the loop over time is not") in message


# -------------------------------------------------------------------------------------- the course


def test_the_ladder_is_climbed_from_rung_to_rung(tmp_path, capsys):
    folder = tmp_path / "course"
    main([str(folder), "--new"])
    files = sorted(folder.glob("*.py"))
    assert len(files) == len(LADDER) and files[0].name == "01_tanh.py" and files[-1].name == "14_attention_lstm.py"
    with pytest.raises(InputError, match="is not empty"):
        main([str(folder), "--new"])
    assert {name for rung in LADDER for name in rung.functions} == set(ORDER)
    capsys.readouterr()
    files[0].write_text(RIGHT)
    with pytest.raises(SystemExit) as left:
        main([str(folder)])
    out = capsys.readouterr().out
    assert left.value.code == 1 and "01_tanh.py                 done" in out
    assert f"1 of 14 done; next: {files[1]}" in out and "sigmoid_forward            not written yet" in out
    for file in files[1:]:
        file.write_text(RIGHT)
    files[4].write_text(RIGHT.replace("def rnn_step_backward(", "def rnn_step_backwards("))
    with pytest.raises(SystemExit):
        main([str(folder)])
    out = capsys.readouterr().out
    assert "not written yet: there is a function rnn_step_backwards" in out and "4 of 14 done" in out
    files[4].unlink()
    with pytest.raises(SystemExit):
        main([str(folder)])
    assert "4 of 14 done; next: " in capsys.readouterr().out
    files[4].write_text(RIGHT)
    main([str(folder)])
    assert "all 14 done" in capsys.readouterr().out
    with pytest.raises(InputError, match="is a folder"):
        main([str(folder), "--json"])
    with pytest.raises(InputError, match="has no Python files"):
        (tmp_path / "empty").mkdir()
        main([str(tmp_path / "empty")])


@pytest.mark.parametrize("number", range(1, len(PUZZLES) + 1))
def test_every_puzzle_can_be_solved(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    puzzle = PUZZLES[number - 1]
    path = write_puzzle(number)
    text = path.read_text()
    found = report_on(text, tmp_path)
    assert found[puzzle.function][0] == "wrong", found
    (tmp_path / "mine.py").unlink()
    right = source_of(puzzle.function)
    path.write_text(text.replace(right.replace(puzzle.right, puzzle.wrong), right))
    assert {outcome for outcome, _ in report_on(path.read_text(), tmp_path).values()} == {"right"}
    if number == 8:
        main(["--puzzle", "8", "--answer"])
        assert "solved: h_t is used by step t + 1 too" in capsys.readouterr().out
        path.write_text(text)
        with pytest.raises(SystemExit):
            main(["--puzzle", "8", "--answer"])
        assert "not yet: rnn_backward" in capsys.readouterr().out
        with pytest.raises(InputError, match="there is no puzzle 99"):
            main(["--puzzle", "99"])


def test_results_for_machines(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        within("rnn_step_forward", ("+ b", ""))
        + "\nfrom rnn_lstm_captioning import lstm_step_forward, lstm_step_backward\n"
    )
    needed = ["rnn_step_forward=3", "rnn_step_backward=2", "lstm_step_forward", "gru_step_forward=1.5"]
    with pytest.raises(SystemExit) as left:
        main([str(mine), "--json", "--gradescope", str(tmp_path / "results.json"), "--need", *needed])
    assert left.value.code == 1
    functions = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["functions"]}
    assert functions["rnn_step_forward"]["points"] == 0 and "bias" in functions["rnn_step_forward"]["message"]
    assert functions["gru_step_forward"] == {
        "name": "gru_step_forward", "outcome": "right", "message": "", "points": 1.5,
    }  # fmt: skip
    graded = json.loads((tmp_path / "results.json").read_text())
    assert graded["score"] == 1.5  # a function of this package gives no points
    assert [(t["name"], t["score"], t["max_score"], t["status"]) for t in graded["tests"]] == [
        ("rnn_step_forward", 0, 3, "failed"),
        ("rnn_step_backward", 0, 2, "failed"),
        ("lstm_step_forward", 0, 1, "failed"),
        ("gru_step_forward", 1.5, 1.5, "passed"),
    ]
    assert "it uses functions of rnn_lstm_captioning" in graded["tests"][2]["output"]
    with pytest.raises(InputError, match="--need: there is no function nonsense"):
        main([str(mine), "--need", "nonsense"])


def test_what_misled_a_learner_does_so_no_more(tmp_path):
    """Found in a trial with fresh eyes: what the messages must not say, and what they say now."""

    def message(function, *changes):
        outcome, text = report_on(within(function, *changes), tmp_path)[function]
        assert outcome == "wrong", (outcome, text)
        return text

    end = "    return dx, dprev_h, dWx, dWh, db"
    assert "is the return inside the loop?" in message("rnn_backward", (end, "    " + end))
    assert "the states are not stored" in message("rnn_forward", ("h[:, t] = prev_h", "pass"))
    assert "is a return missing?" in message("rnn_step_forward", ("return next_h, (x", "(x"))
    zeros = ("dprev_h = np.zeros((N, H))", "dprev_h = dh[:, -1].copy()")
    assert "dprev_h starts with the last dh" in message("rnn_backward", zeros)
    assert "only dx is wrong" in message("rnn_backward", ("dx[:, t], dprev_h", "_, dprev_h"))
    kept = [("h[:, t] = prev_h", "h[:, t] = prev_h"), ("prev_h = h0", "prev_h, kept = h0.copy(), h0.copy()")]
    kept += [("cache.append(step)", "kept[:] = step[4]; cache.append((*step[:4], kept, step[5]))")]
    assert (
        "does your rnn_forward keep arrays that change later?"
        in report_on(within("rnn_forward", *kept), tmp_path)["rnn_backward"][1]
    )
    assert "sign of the sigmoid" in message("sigmoid_backward", ("y * (1 - y)", "-y * (1 - y)"))
    order = ("x.T.dot(dy), dy.sum(axis=0)", "dy.sum(axis=0), x.T.dot(dy)")
    assert "in the wrong order: return dx, dW, db" in message("affine_backward", order)
    found = report_on(within("softmax", ("- scores.max(axis=1, keepdims=True)", "")), tmp_path)
    assert "subtract the largest one of each row" in found["softmax_forward"][1]
    start = ("((dprev_h + dprev_c) / G)", "(dprev_h + dprev_c)")
    assert "is not divided by the number of regions" in message("attention_backward", start)
