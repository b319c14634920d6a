"""The diagrams of the pages, as SVG with the tags of the equations in them.

    python -m docs.scripts.diagrams                                    # into docs/images
    python -m docs.scripts.diagrams --checkpoint cv/attn_best.pt       # also those that show a trained model

A test draws those without a model again and compares them with the files.
"""

import argparse
import base64
import io
import math

from PIL import Image

from rnn_lstm_captioning import load_captioner, load_captions
from rnn_lstm_captioning.data.scenes import COLOURS
from rnn_lstm_captioning.evaluation.captions import ImageCaptioner

from .drawing import IMAGES, Drawing


def rnn() -> Drawing:
    d = Drawing(
        "rnn",
        "The RNN unrolled over three time steps",
        "Three copies of one cell in a row. Each reads a word x_t from below and the hidden state from the left, and "
        "passes its hidden state h_t to the right and up to the loss. Orange arrows show the gradients: two of them "
        "arrive at h_2, one down from the loss at step 2 and one back from step 3. Their sum is dh_2 (RNN-10).",
        height=390,
    )
    centres = (80, 220, 360)
    d.text(220, 22, "forward: grey; gradients: orange", "tag")
    for t, x in enumerate(centres, start=1):
        d.box(x, 70, 84, 34, f"loss_{t}", "third")
        d.arrow((x - 16, 144), (x - 16, 88))
        d.arrow((x + 10, 88), (x + 10, 143), kind="backline")
        d.circle(x - 3, 160, f"h_{t}", "second")
        d.box(x, 240, 66, 44, "tanh")
        d.arrow((x - 12, 218), (x - 12, 177))
        d.arrow((x + 10, 176), (x + 10, 217), kind="backline")
        d.arrow((x - 8, 318), (x - 8, 263))
        d.arrow((x + 10, 263), (x + 10, 317), kind="backline")
        d.text(x, 332, f"x_{t}")
        if t < 3:
            d.arrow((x + 14, 164), (x + 52, 190), (x + 52, 230), (x + 106, 230))
            d.arrow((x + 106, 250), (x + 68, 250), (x + 68, 172), (x + 16, 156), kind="backline")
    d.text(14, 240, "h_0")
    d.arrow((24, 232), (46, 232))
    d.arrow((46, 248), (25, 248), kind="backline")
    d.text(110, 300, "dx_1", "back")
    d.text(24, 272, "dh_0", "back")
    d.text(264, 116, "dh_2^{loss}", "back")
    d.text(318, 200, "dh_2^{next}", "back")
    d.text(220, 366, "dh_2 = dh_2^{loss}  + dh_2^{next}     RNN-10", "back")
    return d


def _lstm_skeleton(d: Drawing, backward: bool) -> None:
    """Cell state above, gates in the middle, the sum a_t below; arrows forward, or back in orange."""
    kind = "backline" if backward else "line"

    def arrow(*points: tuple[float, float], bold: bool = False) -> None:
        d.arrow(*(reversed(points) if backward else points), kind=kind, bold=bold)

    columns = {"f": 110, "i": 185, "g": 260, "o": 335}
    arrow((20, 80), (96, 80), bold=True)
    arrow((124, 80), (222 if backward else 208, 80), bold=True)
    arrow((222 if backward else 236, 80), (425, 80), bold=True)
    for name, x in columns.items():
        arrow((x, 318), (x, 262))
        d.box(x, 240, 52, 40, f"{'tanh' if name == 'g' else 'σ'}", "third" if name == "g" else "box")
    arrow((110, 219), (110, 94))
    arrow((185, 219), (185, 175), (209, 155))
    arrow((260, 219), (260, 175), (235, 155))
    arrow((222, 136), (222, 94))
    arrow((380, 80), (380, 112))
    d.box(380, 128, 52, 30, "tanh", "second")
    arrow((380, 144), (380, 166))
    arrow((335, 219), (335, 180), (366, 180))
    arrow((394, 180), (430, 180))
    d.circle(110, 80, "×")
    if backward:  # what was a sum is a fork now, and the other way round
        d.add("circle", cx=222, cy=80, r=5, style="fill:var(--back)")
    else:
        d.circle(222, 80, "+")
    d.circle(222, 148, "×")
    if backward:
        d.circle(380, 80, "+")
    d.circle(380, 180, "×")
    d.box(222, 336, 310, 36, "a_t = p_t + h_{t-1}W_h", "paper")
    for name, x in columns.items():
        d.text(x + (20 if backward else 14), 206, f"{'d' if backward else ''}{name}_t", "back" if backward else "")


def lstm_forward() -> Drawing:
    d = Drawing(
        "lstm-forward",
        "One step of the LSTM, forward",
        "The cell state runs from left to right along the top, in bold: first it is multiplied by the forget gate f, "
        "then i times g is added (LSTM-5). Below, four boxes compute f, i and o with a sigmoid (LSTM-3) and g with a "
        "tanh (LSTM-4), all from the same sum a_t (LSTM-2). At the right, the tanh of the new cell state times the "
        "output gate o is the hidden state (LSTM-6).",
        height=420,
    )
    _lstm_skeleton(d, backward=False)
    d.text(34, 58, "c_{t-1}")
    d.text(415, 58, "c_t")
    d.text(424, 204, "h_t")
    d.text(290, 58, "LSTM-5", "tag")
    d.text(46, 240, "LSTM-3", "tag")
    d.text(297, 290, "LSTM-4", "tag")
    d.text(398, 234, "LSTM-6", "tag")
    d.text(222, 376, "LSTM-2 (p_t = x_t W_x + b: LSTM-1)", "tag")
    d.text(222, 404, "one product makes all four", "tag")
    return d


def lstm_backward() -> Drawing:
    d = Drawing(
        "lstm-backward",
        "One step of the LSTM, backward",
        "The same cell with all arrows turned round. The gradient of the cell state runs from right to left along the "
        "top, in bold, and meets no matrix: what arrives from the output is added (LSTM-7), and then it is multiplied "
        "by the forget gate (LSTM-12). On its way it gives di, df and do (LSTM-8), which go through the sigmoids "
        "(LSTM-9) and the tanh (LSTM-10) into da_t, and from there through a matrix into dh_{t-1} (LSTM-11).",
        height=420,
    )
    _lstm_skeleton(d, backward=True)
    d.text(48, 52, "dc_{t-1}^{next}", "back")
    d.text(404, 52, "dc_t^{next}", "back")
    d.text(416, 204, "dh_t", "back")
    d.text(300, 52, "dc_t  LSTM-7", "tag")
    d.text(60, 112, "LSTM-12", "tag")
    d.text(60, 132, "dc_t f_t", "tag")
    d.text(282, 128, "LSTM-8", "tag")
    d.text(46, 240, "LSTM-9", "tag")
    d.text(298, 298, "LSTM-10", "tag")
    d.text(222, 376, "da_t W_h^T = dh_{t-1}^{next}    LSTM-11", "back")
    d.text(222, 404, "the bold path meets no matrix", "tag")
    return d


def gru() -> Drawing:
    d = Drawing(
        "gru",
        "One step of the GRU",
        "The hidden state runs along the top, in bold. The update gate z keeps a part of it, and the rest is filled "
        "with the new content n (GRU-5). The reset gate r decides how much of the product of the previous state "
        "enters n (GRU-4). r and z come from sigmoids (GRU-3).",
        height=400,
    )
    d.text(34, 54, "h_{t-1}")
    d.text(415, 54, "h_t")
    d.arrow((20, 80), (96, 80), bold=True)
    d.arrow((124, 80), (326, 80), bold=True)
    d.arrow((354, 80), (425, 80), bold=True)
    d.circle(110, 80, "×")
    d.circle(340, 80, "+")
    for name, x in {"z": 110, "r": 200}.items():
        d.box(x, 250, 52, 40, "σ")
        d.arrow((x, 336), (x, 271))
        d.text(x - 16, 214, f"{name}_t")
    d.arrow((110, 229), (110, 94))
    d.arrow((110, 150), (326, 150))
    d.arrow((200, 229), (200, 196), (262, 196), (262, 290))
    d.circle(262, 304, "×")
    d.arrow((262, 336), (262, 318))
    d.text(238, 322, "u_t^n")
    d.box(340, 250, 60, 40, "tanh", "third")
    d.arrow((275, 304), (325, 304), (325, 271))
    d.arrow((360, 336), (360, 271))
    d.text(384, 312, "p_t^n")
    d.arrow((340, 229), (340, 164))
    d.text(360, 210, "n_t")
    d.circle(340, 150, "×")
    d.arrow((340, 137), (340, 94))
    d.text(222, 132, "1 - z_t")
    d.text(225, 54, "GRU-5", "tag")
    d.text(46, 250, "GRU-3", "tag")
    d.text(406, 250, "GRU-4", "tag")
    d.box(220, 354, 400, 36, "p_t = x_tW_x + b,   u_t = h_{t-1}W_h", "paper")
    d.text(220, 388, "GRU-1, GRU-2", "tag")
    return d


def gate_blocks() -> Drawing:
    d = Drawing(
        "gates",
        "One matrix product computes all four gates",
        "The row x_t with D numbers, times the matrix W_x with D rows and 4H columns. The matrix consists of four "
        "blocks side by side, one for each of i, f, o and g. The result is a row of 4H numbers, again in four "
        "blocks.",
        height=250,
    )
    colours = ("box", "second", "fourth", "third")
    d.box(62, 100, 80, 26, "x_t", "paper")
    d.text(62, 128, "1 × D", "tag")
    d.text(122, 100, "×")
    for k, (name, colour) in enumerate(zip("ifog", colours)):
        d.box(176 + 66 * k, 100, 66, 100, f"W_x^{name}", colour)
        d.box(176 + 66 * k, 200, 66, 28, name, colour)
    d.text(275, 34, "W_x: D × 4H", "tag")
    d.text(110, 200, "=")
    d.text(58, 200, "x_t W_x")
    d.text(275, 234, "1 × 4H, in the order i, f, o, g", "tag")
    return d


def shift() -> Drawing:
    d = Drawing(
        "shift",
        "Inputs and targets, shifted by one word",
        "The caption START a dog runs END stands in a row. The network reads START, a, dog, runs, and must predict a, "
        "dog, runs, END: each target is the input of the next step.",
        height=230,
    )
    words = ("START", "a", "dog", "runs", "END")
    centres = (126, 212, 298, 384)
    d.text(44, 170, "reads")
    d.text(44, 60, "target")
    for k, x in enumerate(centres):
        d.box(x, 170, 70, 32, words[k])
        d.box(x, 60, 70, 32, words[k + 1], "third")
        d.arrow((x, 153), (x, 138))
        d.circle(x, 120, f"h_{k + 1}", "second")
        d.arrow((x, 102), (x, 77))
        if k < 3:
            d.arrow((x + 17, 120), (x + 68, 120))
            d.arrow((x + 30, 77), (x + 62, 152))
    d.text(255, 20, "the next word", "tag")
    d.text(220, 212, "a target is the next input (teacher forcing)", "tag")
    return d


def captioner() -> Drawing:
    d = Drawing(
        "captioner",
        "The whole captioner, from pixels to words, with its shapes",
        "From top to bottom. Left: images (N, 3, 112, 112) go through the CNN to features (N, C, 4, 4), and an affine "
        "map turns these into the initial state, or into the grid A for attention. Right: the words of the caption "
        "(N, T) become word vectors x (N, T, D). Both meet in the cell, which returns h (N, T, H). An affine map makes "
        "scores (N, T, V), and the loss compares them with the next words.",
        height=568,
    )
    d.text(115, 22, "images (N, 3, 112, 112)")
    d.arrow((115, 36), (115, 62))
    d.box(115, 84, 180, 42, "CNN", "fourth")
    d.arrow((115, 105), (115, 128))
    d.text(115, 142, "features (N, C, 4, 4)")
    d.arrow((115, 156), (115, 182))
    d.box(115, 204, 180, 42, "affine map", "second")
    d.arrow((115, 225), (115, 244))
    d.text(115, 258, "h_0 (N, H) or A (N, H, 4, 4)")
    d.arrow((115, 272), (115, 292))
    d.text(330, 84, "words (N, T)")
    d.arrow((330, 98), (330, 182))
    d.box(330, 204, 180, 42, "word vectors", "second")
    d.arrow((330, 225), (330, 244))
    d.text(330, 258, "x (N, T, D)")
    d.arrow((330, 272), (330, 292))
    d.box(220, 314, 390, 42, "RNN, LSTM, GRU or attention LSTM")
    d.arrow((220, 335), (220, 354))
    d.text(220, 368, "h (N, T, H)")
    d.arrow((220, 382), (220, 402))
    d.box(220, 424, 200, 42, "affine map", "second")
    d.arrow((220, 445), (220, 464))
    d.text(220, 478, "scores (N, T, V)")
    d.arrow((220, 492), (220, 512))
    d.box(220, 534, 280, 42, "loss, or the next word", "third")
    return d


def attention_flow() -> Drawing:
    d = Drawing(
        "attention-flow",
        "One step of attention, forward and backward",
        "The hidden state h_{t-1} at the left is used twice: as the query it meets the regions A_k in dot products "
        "u_k (ATT-2), and it goes into the gates (ATT-6). A softmax turns u_k into weights w_k (ATT-3). The weighted "
        "mean of the regions, attn_t (ATT-4), goes into the gates too. Orange: the gradients come back from the gates, "
        "to h_{t-1} directly (ATT-15), and through the mean, the softmax and the dot products (ATT-17 to ATT-19); the "
        "regions receive one part from the mean and one from the dot products (ATT-20, ATT-21).",
        height=430,
    )
    d.text(220, 22, "forward: grey; gradients: orange", "tag")
    d.box(60, 220, 76, 40, "h_{t-1}", "second")
    d.box(220, 68, 170, 40, "regions A_k", "fourth")
    d.box(220, 150, 120, 40, "u_k", "third")
    d.box(220, 226, 120, 40, "w_k", "third")
    d.box(220, 302, 120, 40, "attn_t", "third")
    d.box(330, 386, 190, 44, "gates")
    d.arrow((212, 88), (212, 129))
    d.arrow((228, 129), (228, 89), kind="backline")
    d.arrow((70, 199), (70, 150), (159, 150))
    d.arrow((159, 162), (84, 162), (84, 199), kind="backline")
    d.arrow((212, 170), (212, 205))
    d.arrow((228, 205), (228, 171), kind="backline")
    d.arrow((212, 246), (212, 281))
    d.arrow((228, 281), (228, 247), kind="backline")
    d.arrow((306, 60), (390, 60), (390, 294), (281, 294))
    d.arrow((281, 310), (406, 310), (406, 76), (306, 76), kind="backline")
    d.arrow((212, 322), (212, 378), (234, 378))
    d.arrow((234, 396), (228, 396), (228, 323), kind="backline")
    d.arrow((52, 241), (52, 400), (234, 400))
    d.arrow((234, 392), (68, 392), (68, 241), kind="backline")
    d.text(116, 136, "ATT-2", "tag")
    d.text(128, 178, "dq ATT-19", "back")
    d.text(262, 108, "ATT-21", "back")
    d.text(184, 196, "ATT-3", "tag")
    d.text(262, 188, "ATT-18", "back")
    d.text(182, 264, "ATT-4", "tag")
    d.text(262, 264, "ATT-17", "back")
    d.text(372, 330, "ATT-20", "back")
    d.text(270, 346, "ATT-15", "back")
    d.text(120, 376, "ATT-15", "back")
    d.text(140, 418, "ATT-6", "tag")
    return d


DIAGRAMS = (rnn, lstm_forward, lstm_backward, gru, gate_blocks, shift, captioner, attention_flow)


# --------------------------------------------------------------------------------- of a trained model


def attention(captioner: ImageCaptioner, image) -> Drawing:
    """image uint8 (3, S, S), a scene: the colour words of its caption, region by region."""
    (caption,) = captioner.caption_images(image[None])
    weights = caption.attention  # (words, grid_h, grid_w)
    chosen = [t for t, word in enumerate(caption.words) if word in COLOURS][:2]
    shown = " and ".join(f"'{caption.words[t]}'" for t in chosen)
    d = Drawing(
        "attention-grid",
        "The attention weights of two words, region by region",
        f"A scene with its caption '{caption.text}'. The picture is drawn twice with a grid over it, for the words "
        f"{shown}. The number in each region is its weight w_k in percent (ATT-3); bright regions have large weights.",
        height=760,
    )
    with io.BytesIO() as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    words, lines = caption.words, [""]
    for word in words:  # the caption, in lines that fit
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 42 else [lines[-1], word]
    for k, line in enumerate(lines):
        d.text(220, 18 + 20 * k, line)
    for k, t in enumerate(chosen):
        top, grid_h, grid_w = 54 + 356 * k, *weights.shape[1:]
        side = 340 / max(grid_h, grid_w)
        d.text(52, top + 20, words[t], size=18)
        d.text(52, top + 50, "w_k in %", "tag")
        d.add("image", href=picture, x=92, y=top, width=340, height=340, preserveAspectRatio="none")
        peak = weights[t].max().item()
        for row in range(grid_h):
            for column in range(grid_w):
                weight = weights[t, row, column].item()
                x, y = 92 + column * side, top + row * side
                shade = f"fill:#000;fill-opacity:{0.75 * (1 - weight / peak):.2f};stroke:#fff;stroke-opacity:.35"
                d.add("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{side:.1f}", height=f"{side:.1f}", style=shade)
                if weight >= 0.005:
                    style = "fill:#fff;stroke:#000;stroke-width:3;paint-order:stroke;text-anchor:middle"
                    label = d.add("text", x=f"{x + side / 2:.1f}", y=f"{y + side / 2 + 6:.1f}", style=style)
                    label.set("font-size", "16")
                    label.text = f"{100 * weight:.0f}"
    return d


def beam(captioner: ImageCaptioner, image, width: int = 3, steps: int = 4) -> Drawing:
    """image uint8 (3, S, S): the first steps of a beam search as a tree."""
    features = captioner.model.encode(image[None])
    kept, columns = [((), 0.0)], []  # beginnings and their log-probabilities
    for _ in range(steps):
        found = [
            ((*words, word), log_prob + math.log(p))
            for words, log_prob in kept
            for word, p in captioner.next_words(features, words, top=width)[-1]
        ]
        kept = sorted(found, key=lambda pair: -pair[1])[:width]
        columns.append((found, kept))
    best = " ".join(kept[0][0])
    d = Drawing(
        "beam",
        f"The first {steps} steps of a beam search with beam width {width}",
        "A tree that grows from left to right. Each column holds the most probable next words of the beginnings that "
        f"were kept; the {width} best of a column, in blue, are kept and extended. The number is the probability of "
        f"the whole beginning in percent. After {steps} words the best beginning is '{best}'.",
        height=46 + 46 * width**2,
    )
    step, places = 440 / steps, {(): (0, 0)}
    for t, (found, best_ones) in enumerate(columns):
        d.text(step * (t + 0.5), 18, f"word {t + 1}", "tag")
        top = 54 + 23 * (width**2 - len(found))
        for k, (words, log_prob) in enumerate(found):
            x, y, keep = step * (t + 0.5), top + 46 * k, (words, log_prob) in best_ones
            if t:
                from_x, from_y = places[words[:-1]]
                d.arrow((from_x + 46, from_y), (x - 46, y), kind="backline" if keep else "line", head=False)
            d.box(x, y, 92, 42, f"{words[-1]}\n{100 * math.exp(log_prob):.1f}", "box" if keep else "paper", size=16)
            places[words] = x, y
    return d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a captioner with attention, trained on the scenes")
    parser.add_argument("--scene", type=int, default=1, help="which scene of the validation split (%(default)s)")
    args = parser.parse_args()
    drawings = [draw() for draw in DIAGRAMS]
    if args.checkpoint:
        captioner, image = (
            load_captioner(args.checkpoint, "cpu"),
            load_captions("scenes").splits["val"].images[args.scene],
        )
        drawings += [attention(captioner, image), beam(captioner, image)]
    for drawing in drawings:
        drawing.write(IMAGES)
        print(f"wrote docs/images/{drawing.name}.svg")


if __name__ == "__main__":
    main()
