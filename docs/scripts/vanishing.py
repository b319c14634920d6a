"""Why gradients vanish and explode: how far a gradient gets, in new cells with other weights.

    python -m docs.scripts.vanishing          # writes docs/images/vanishing.png; a few seconds

Top: in an RNN, the gradient of h_t is multiplied at each step back by diag(1 - h^2) W_h^T. W_h is drawn from
N(0, 1/H) and scaled. Middle: the norm of dW_h against the length of the sequence, before and after clipping. Clipping
limits what explodes, and brings back nothing that vanished. Bottom: an LSTM with forget biases 0, 1 and 3; dotted, what
goes along the cell state alone.
"""

import torch
from matplotlib.figure import Figure

from rnn_lstm_captioning import LSTM, RNN
from rnn_lstm_captioning.classroom.looking_inside import norms_back_in_time

from .drawing import IMAGES

D, H, T, N, WORD_SIZE, CLIP = 64, 128, 60, 32, 0.1, 5.0


def rnn_with_scale(scale: float) -> RNN:
    torch.manual_seed(0)
    cell = RNN(D, H)
    cell.Wh.data *= scale
    return cell


def rnn_norms(scale: float, steps: int = T) -> list[float]:
    """The norm of the gradient after 0, 1, ... steps back; the words are small, so tanh is nearly linear at first."""
    cell = rnn_with_scale(scale)
    return norms_back_in_time(cell, WORD_SIZE * torch.randn(N, steps, D), H)


def weight_gradient(scale: float, steps: int) -> float:
    """The norm of dW_h if the gradient of the last hidden state is a random vector with norm 1."""
    cell = rnn_with_scale(scale)
    x = WORD_SIZE * torch.randn(N, steps, D)
    h = cell(x, torch.zeros(N, H))[:, -1]
    dh = torch.randn(N, H)
    h.backward(dh / dh.norm())
    return cell.Wh.grad.norm().item()


def lstm_norms(bias: float) -> tuple[list[float], list[float]]:
    """The norm of the whole gradient, and of what goes along the cell state alone, from the gradient of the last c."""
    torch.manual_seed(0)
    cell = LSTM(D, H)
    cell.b.data[H : 2 * H] = bias
    x = torch.randn(N, T, D)
    state, forgets = cell.start(torch.zeros(N, H)), []
    with torch.no_grad():
        for t in range(T):
            forgets.append(cell.gates(x[:, t], state, x)["forget gate f"])
            state, _ = cell.step(x[:, t], state, x)
    dc = torch.randn(N, H)
    alone = []
    for f in reversed(forgets):
        alone.append(dc.norm(dim=1).mean().item())
        dc = dc * f  # LSTM-12
    return norms_back_in_time(cell, x, H), alone


def draw() -> tuple[Figure, dict[str, float]]:
    """Returns: the figure, and the shares that are left after 50 steps, by name."""
    figure, left = Figure(figsize=(6, 10.5), layout="constrained"), {}
    rnns, clipped, lstms = figure.subplots(3, 1)
    for scale in (0.5, 1.0, 2.0):
        norms = rnn_norms(scale)
        left[f"RNN, W times {scale:g}"] = norms[50] / norms[0]
        rnns.semilogy([norm / norms[0] for norm in norms], label=f"$W_h$ times {scale:g}")
    lengths = [5, 10, 20, 30, 40, 50, 60]
    for scale, colour in ((0.5, "C0"), (2.0, "C2")):
        norms = [weight_gradient(scale, length) for length in lengths]
        clipped.semilogy(lengths, norms, f"{colour}--", label=f"$W_h$ times {scale:g}")
        clipped.semilogy(lengths, [min(norm, CLIP) for norm in norms], colour, label="... clipped at 5")
    for bias, colour in ((0.0, "C0"), (1.0, "C1"), (3.0, "C2")):
        norms, alone = lstm_norms(bias)
        left[f"LSTM, forget bias {bias:g}"] = norms[50] / norms[0]
        left[f"... along c alone, forget bias {bias:g}"] = alone[50] / alone[0]
        lstms.semilogy([norm / norms[0] for norm in norms], colour, label=f"forget bias {bias:g}")
        lstms.semilogy([norm / alone[0] for norm in alone], f"{colour}:", label="... along c alone")
    rnns.set(title="RNN", xlabel="steps back in time", ylabel="norm of the gradient, the last step's = 1")
    clipped.set(title="RNN: clipping", xlabel="length of the sequence", ylabel="norm of $dW_h$")
    lstms.set(title="LSTM", xlabel="steps back in time")
    for axes in (rnns, clipped, lstms):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure, left


if __name__ == "__main__":
    figure, left = draw()
    figure.savefig(IMAGES / "vanishing.png", dpi=110)
    for name, share in left.items():
        print(f"{name}: {share:.1e} is left after 50 steps")
