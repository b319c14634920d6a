"""A tiny character model that uses the cells of the captioner: it reads a text letter by letter and learns to continue.

    python -m docs.scripts.characters                          # these pages are the text; a minute
    python -m docs.scripts.characters --cell gru --text FILE

The idea is from Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015).
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn

from rnn_lstm_captioning import WordEmbedding, temporal_softmax_loss
from rnn_lstm_captioning.cells import CELLS
from rnn_lstm_captioning.cells.layers import Affine

D, H, T, N = 64, 256, 64, 64


class CharacterModel(nn.Module):
    """characters int64 (N, T) -> scores (N, T, V) of the next character."""

    def __init__(self, cell: str, characters: str) -> None:
        super().__init__()
        self.characters = characters
        self.vectors = WordEmbedding(len(characters), D)
        self.cell = CELLS[cell](D, H)
        self.scores = Affine(H, len(characters))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.scores(self.cell(self.vectors(indices), torch.zeros(len(indices), H)))

    def encode(self, text: str) -> torch.Tensor:
        place = {character: index for index, character in enumerate(self.characters)}
        return torch.tensor([place[character] for character in text])

    @torch.no_grad()
    def write(self, beginning: str, length: int, temperature: float = 0.7) -> str:
        """Continue a text, one character at a time."""
        image = torch.zeros(1, H)  # the cell's start; there is no image here
        state, indices = self.cell.start(image), list(self.encode(beginning))
        for k in range(len(beginning) + length - 1):
            state, _ = self.cell.step(self.vectors(indices[k][None]), state, image)
            if k >= len(beginning) - 1:
                probabilities = (self.scores(state[0]) / temperature).softmax(1)
                indices.append(torch.multinomial(probabilities, 1)[0, 0])
        return "".join(self.characters[index] for index in indices)


def train(model: CharacterModel, text: str, seconds: float) -> list[float]:
    """Returns: the loss per character in nats, one value for each training step."""
    data, losses, end = model.encode(text), [], time.perf_counter() + seconds
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    while time.perf_counter() < end or not losses:
        starts = torch.randint(len(data) - T, (N, 1))
        batch = data[starts + torch.arange(T + 1)]  # (N, T + 1)
        loss = temporal_softmax_loss(model(batch[:, :-1]), batch[:, 1:]) / T
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=[name for name, cell in CELLS.items() if not cell.uses_grid], default="lstm")
    parser.add_argument("--text", type=Path, help="a text file (without it: the pages in docs)")
    parser.add_argument("--seconds", type=float, default=60, help="of training (%(default)g)")
    args = parser.parse_args()
    files = [args.text] if args.text else sorted(Path(__file__).parents[1].glob("*.md"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    if len(text) < 10 * T:
        parser.error(f"{args.text} has only {len(text)} characters; give a text with at least {10 * T}")
    torch.manual_seed(0)
    model = CharacterModel(args.cell, "".join(sorted(set(text))))
    V = len(model.characters)
    print(f"{len(text):,} characters, {V} different ones: ln V = {math.log(V):.2f}")
    losses = train(model, text, args.seconds)
    last = losses[-20:]
    print(
        f"{len(losses)} steps: the loss fell from {losses[0]:.2f} to {sum(last) / len(last):.2f} nats per character\n"
    )
    print(model.write("The gradient", 400))


if __name__ == "__main__":
    main()
