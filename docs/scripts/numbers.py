"""The numbers worked out in the pages: one small example per page, line by line, with the tags of the equations.

    python -m docs.scripts.numbers           # writes the tables into the pages, between two comments

Everything here is plain arithmetic with one number per value (H = 1), so that a pocket calculator can follow it. A
test compares the results with the functions that train (rnn_forward, rnn_backward and so on), and the tables with the
pages.
"""

import math
import re
from pathlib import Path

PAGES = Path(__file__).parents[1]

# The example of the recurrent cells: D = H = 1, T = 3. The loss uses h_1 and h_3, with the factor 1 each.
X, H0, DH_LOSS = (1.0, 0.0, -1.0), 0.5, (1.0, 0.0, 1.0)
RNN = {"Wx": 1.0, "Wh": 0.5, "b": 0.0}
LSTM = {"Wx": (1.0, 0.0, 1.0, 1.0), "Wh": (0.5, 0.5, 0.5, 0.5), "b": (0.0, 1.0, 0.0, 0.0)}  # i, f, o, g
GRU = {"Wx": (1.0, 0.0, 1.0), "Wh": (0.5, 0.5, 0.5), "b": (0.0, 0.0, 0.0)}  # r, z, n
# The example of attention: H = 2, a grid of 2 by 2 regions, one step.
REGIONS, QUERY, DATTN = ((2.0, 0.0), (0.0, 2.0), (1.0, 1.0), (0.0, 0.0)), (1.0, 0.5), (0.0, 1.0)
# The example of the loss: a vocabulary of three words, the right one is the first.
SCORES, RIGHT = (2.0, 1.0, 0.0), 0


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def show(value):
    """A number as the tables print it: three decimals, without a minus before zero."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def table(title, columns, rows):
    """A Markdown table. Args: title, of the first column; columns, names; rows, (label, values or None where empty)."""
    lines = [f"| {title} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for label, values in rows:
        lines.append(f"| {label} | {' | '.join('' if value is None else show(value) for value in values)} |")
    return "\n".join(lines)


def steps(found, names):
    """Rows of a table from a list with one dict of values per time step."""
    return [(label, [step.get(name) for step in found]) for name, label in names.items()]


def tables(found, back, forward, backward, parts, weights):
    """The three tables of a cell. Args: found, back, the values of each step; forward, backward, name -> label; parts,
    the columns of the weights; weights, (label, values)."""
    times = [f"t = {t}" for t in (1, 2, 3)]
    return "\n\n".join(
        [
            table("forward", times, [("$x_t$", X), *steps(found, forward)]),
            table("backward, read from right to left", times, steps(back, backward)),
            table("weights", parts, weights),
        ]
    )


# ------------------------------------------------------------------------------------------ the cells


def rnn():
    """Returns: the values of each step forward and backward, two lists of dicts, and the summed gradients, a dict."""
    found, h = [], H0
    for x in X:
        p = x * RNN["Wx"] + RNN["b"]
        a = p + h * RNN["Wh"]
        found.append({"x": x, "prev_h": h, "p": p, "a": a, "h": math.tanh(a)})
        h = found[-1]["h"]
    back, dh_next = [], 0.0
    for step, dh_loss in zip(reversed(found), reversed(DH_LOSS)):
        dh = dh_loss + dh_next
        da = dh * (1 - step["h"] ** 2)
        back.insert(0, {"dh_loss": dh_loss, "dh_next": dh_next, "dh": dh, "da": da, "dx": da * RNN["Wx"]})
        dh_next = back[0]["dprev_h"] = da * RNN["Wh"]
    sums = {
        "dWx": sum(step["x"] * b["da"] for step, b in zip(found, back)),
        "dWh": sum(step["prev_h"] * b["da"] for step, b in zip(found, back)),
        "db": sum(b["da"] for b in back),
    }
    return found, back, sums


def rnn_table():
    found, back, sums = rnn()
    return tables(
        found,
        back,
        {"p": "$p_t$, RNN-1", "a": "$a_t$, RNN-2", "h": "$h_t$, RNN-3"},
        {
            "dh_loss": "$dh_t^{loss}$",
            "dh_next": "$dh_t^{next}$",
            "dh": "$dh_t$, RNN-10",
            "da": "$da_t$, RNN-4",
            "dprev_h": "$dh_{t-1}^{next}$, RNN-5",
            "dx": "$dx_t$, RNN-6",
        },
        ["sum"],
        [
            ("$dW_x$, RNN-7", [sums["dWx"]]),
            ("$dW_h$, RNN-8", [sums["dWh"]]),
            ("$db$, RNN-9", [sums["db"]]),
        ],
    )


def lstm():
    """As :func:`rnn`; da is a tuple in the order i, f, o, g."""
    found, h, c = [], H0, 0.0
    for x in X:
        a = [x * wx + b + h * wh for wx, wh, b in zip(LSTM["Wx"], LSTM["Wh"], LSTM["b"])]
        i, f, o, g = sigmoid(a[0]), sigmoid(a[1]), sigmoid(a[2]), math.tanh(a[3])
        next_c = f * c + i * g
        found.append({"x": x, "prev_h": h, "prev_c": c, "i": i, "f": f, "o": o, "g": g, "c": next_c})
        h, c = o * math.tanh(next_c), next_c
        found[-1]["h"] = h
    back, dh_next, dc_next = [], 0.0, 0.0
    for step, dh_loss in zip(reversed(found), reversed(DH_LOSS)):
        i, f, o, g, tanh_c = (*(step[name] for name in "ifog"), math.tanh(step["c"]))
        dh = dh_loss + dh_next
        dc = dc_next + dh * o * (1 - tanh_c**2)
        di, df, do = dc * g, dc * step["prev_c"], dh * tanh_c
        da = (di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dc * i * (1 - g**2))
        back.insert(0, {"dh_loss": dh_loss, "dh_next": dh_next, "dh": dh, "dc_next": dc_next, "dc": dc, "all": da})
        back[0] |= dict(zip(("da_i", "da_f", "da_o", "da_g"), da))
        dh_next = back[0]["dprev_h"] = sum(d * w for d, w in zip(da, LSTM["Wh"]))
        dc_next = back[0]["dprev_c"] = dc * f
        back[0]["dx"] = sum(d * w for d, w in zip(da, LSTM["Wx"]))
    return found, back, _weights(found, back, 4)


def _weights(found, back, gates):
    return {
        "dWx": [sum(step["x"] * b["all"][k] for step, b in zip(found, back)) for k in range(gates)],
        "dWh": [sum(step["prev_h"] * b.get("du", b["all"])[k] for step, b in zip(found, back)) for k in range(gates)],
        "db": [sum(b["all"][k] for b in back) for k in range(gates)],
    }


def lstm_table():
    found, back, sums = lstm()
    forward = {name: f"${name}_t$, LSTM-{3 if name in 'ifo' else 4}" for name in "ifog"}
    forward |= {"c": "$c_t$, LSTM-5", "h": "$h_t$, LSTM-6"}
    backward = {
        "dh_loss": "$dh_t^{loss}$",
        "dh_next": "$dh_t^{next}$",
        "dh": "$dh_t$, LSTM-17",
        "dc_next": "$dc_t^{next}$",
        "dc": "$dc_t$, LSTM-7",
        "da_i": "$da_t^i$, LSTM-9",
        "da_f": "$da_t^f$, LSTM-9",
        "da_o": "$da_t^o$, LSTM-9",
        "da_g": "$da_t^g$, LSTM-10",
        "dprev_h": "$dh_{t-1}^{next}$, LSTM-11",
        "dprev_c": "$dc_{t-1}^{next}$, LSTM-12",
        "dx": "$dx_t$, LSTM-13",
    }
    weights = [
        ("$dW_x$, LSTM-14", sums["dWx"]),
        ("$dW_h$, LSTM-15", sums["dWh"]),
        ("$db$, LSTM-16", sums["db"]),
    ]
    return tables(found, back, forward, backward, list("ifog"), weights)


def gru():
    """As :func:`rnn`; "all" and "du" are the gradients of p and u, in the order r, z, n."""
    found, h = [], H0
    for x in X:
        p = [x * w + b for w, b in zip(GRU["Wx"], GRU["b"])]
        u = [h * w for w in GRU["Wh"]]
        r, z = sigmoid(p[0] + u[0]), sigmoid(p[1] + u[1])
        n = math.tanh(p[2] + r * u[2])
        found.append({"x": x, "prev_h": h, "r": r, "z": z, "n": n, "u_n": u[2], "h": (1 - z) * n + z * h})
        h = found[-1]["h"]
    back, dh_next = [], 0.0
    for step, dh_loss in zip(reversed(found), reversed(DH_LOSS)):
        r, z, n, prev_h = (step[name] for name in ("r", "z", "n", "prev_h"))
        dh = dh_loss + dh_next
        dz, dn = dh * (prev_h - n), dh * (1 - z)
        da_n = dn * (1 - n**2)
        dr = da_n * step["u_n"]
        dp = (dr * r * (1 - r), dz * z * (1 - z), da_n)
        du = (dp[0], dp[1], da_n * r)
        back.insert(0, {"dh_loss": dh_loss, "dh_next": dh_next, "dh": dh, "all": dp, "du": du})
        back[0] |= {"da_r": dp[0], "da_z": dp[1], "da_n": da_n, "du_n": du[2]}
        dh_next = back[0]["dprev_h"] = sum(d * w for d, w in zip(du, GRU["Wh"])) + dh * z
        back[0]["dx"] = sum(d * w for d, w in zip(dp, GRU["Wx"]))
    return found, back, _weights(found, back, 3)


def gru_table():
    found, back, sums = gru()
    forward = {"r": "$r_t$, GRU-3", "z": "$z_t$, GRU-3", "n": "$n_t$, GRU-4", "h": "$h_t$, GRU-5"}
    backward = {
        "dh_loss": "$dh_t^{loss}$",
        "dh_next": "$dh_t^{next}$",
        "dh": "$dh_t$, GRU-16",
        "da_n": "$da_t^n$, GRU-7",
        "da_r": "$da_t^r$, GRU-9",
        "da_z": "$da_t^z$, GRU-9",
        "du_n": "$du_t^n$, GRU-10",
        "dprev_h": "$dh_{t-1}^{next}$, GRU-11",
        "dx": "$dx_t$, GRU-12",
    }
    weights = [
        ("$dW_x$, GRU-13", sums["dWx"]),
        ("$dW_h$, GRU-14", sums["dWh"]),
        ("$db$, GRU-15", sums["db"]),
    ]
    return tables(found, back, forward, backward, list("rzn"), weights)


# ------------------------------------------------------------------------------- attention, loss, metrics


def attention():
    """One step over four regions. Returns: a dict of lists with one value per region, and attn and dq, pairs."""
    root = math.sqrt(len(QUERY))
    u = [sum(q * a for q, a in zip(QUERY, region)) for region in REGIONS]
    e = [math.exp(score / root) for score in u]
    w = [value / sum(e) for value in e]
    attn = [sum(weight * region[j] for weight, region in zip(w, REGIONS)) for j in range(2)]
    dw = [sum(d * a for d, a in zip(DATTN, region)) for region in REGIONS]
    mean = sum(weight * d for weight, d in zip(w, dw))
    du = [weight * (d - mean) / root for weight, d in zip(w, dw)]
    dq = [sum(d * region[j] for d, region in zip(du, REGIONS)) for j in range(2)]
    dA = [[weight * DATTN[j] + d * QUERY[j] for weight, d in zip(w, du)] for j in range(2)]
    return {"u": u, "e": e, "w": w, "dw": dw, "du": du, "dA": dA}, attn, dq, mean


def attention_table():
    found, attn, dq, mean = attention()
    regions = [f"region {k}" for k in (1, 2, 3, 4)]
    forward = table(
        "forward",
        regions,
        [
            ("$A_k$, first number", [region[0] for region in REGIONS]),
            ("$A_k$, second number", [region[1] for region in REGIONS]),
            ("$u_k$, ATT-2", found["u"]),
            (r"$e^{u_k / \sqrt{2}}$", found["e"]),
            ("$w_k$, ATT-3", found["w"]),
        ],
    )
    backward = table(
        "backward",
        regions,
        [
            ("$dw_k$, ATT-17", found["dw"]),
            ("$du_k$, ATT-18", found["du"]),
            ("$dA_k$, first number, ATT-20 and 21", found["dA"][0]),
            ("$dA_k$, second number, ATT-20 and 21", found["dA"][1]),
        ],
    )
    sentence = (
        rf"$\mathrm{{attn}}_t$ = ({show(attn[0])}, {show(attn[1])}), ATT-4. The weighted mean in ATT-18 is "
        f"{show(mean)}, and $dq$ = ({show(dq[0])}, {show(dq[1])}), ATT-19."
    )
    return f"{forward}\n\n{backward}\n\n{sentence}"


def loss():
    """Returns: the probabilities of the three words, the loss of the right one in nats, the scores' gradient."""
    e = [math.exp(score) for score in SCORES]
    p = [value / sum(e) for value in e]
    nats = math.log(sum(e)) - SCORES[RIGHT]
    return p, nats, [q - (k == RIGHT) for k, q in enumerate(p)]


def loss_table():
    p, nats, gradient = loss()
    rows = [("score $x_v$", SCORES), ("probability $p(v)$", p), ("gradient $dx_v$, LOSS-3", gradient)]
    text = table("", ["dog (right)", "cat", "runs"], rows)
    blind = show(math.log(len(SCORES)))
    return f"{text}\n\nThe loss is {show(nats)} nats, LOSS-1. With equal scores it would be ln 3 = {blind}."


TABLES = {"rnn": rnn_table, "lstm": lstm_table, "gru": gru_table, "attention": attention_table, "loss": loss_table}


def with_numbers(page, text):
    """The text of a page with its table between ``<!-- numbers -->`` and ``<!-- end of numbers -->``."""
    found = f"<!-- numbers: python -m docs.scripts.numbers -->\n\n{TABLES[page]()}\n\n<!-- end of numbers -->"
    text, count = re.subn(r"<!-- numbers.*?<!-- end of numbers -->", lambda _: found, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"docs/{page}.md must have one place for its numbers, between two comments; it has {count}")
    return text


if __name__ == "__main__":
    for page in TABLES:
        path = PAGES / f"{page}.md"
        path.write_text(with_numbers(page, path.read_text(encoding="utf-8")), encoding="utf-8")
