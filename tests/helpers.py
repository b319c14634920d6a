"""Small models and data for the tests. The tests run over the registry of cells, so a new cell needs no line here."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rnn_lstm_captioning import CaptioningRNN, cells, classroom
from rnn_lstm_captioning.classroom.comparing import make_arguments
from rnn_lstm_captioning.commands import test, train
from rnn_lstm_captioning.data.vocabulary import END, NULL, SPECIAL_TOKENS, START

CELLS = tuple(cells.CELLS)
SOLUTION = Path(classroom.__file__).parent / "solution.py"  # a right solution in numpy


class TinyEncoder(nn.Module):
    """Replaces the CNN: its features are 32-pixel patches, C = 6."""

    name, out_channels, frozen = "tiny", 6, True

    def __init__(self):
        super().__init__()
        self.cnn = nn.Conv2d(3, 6, 32, stride=32)

    def forward(self, images):
        return self.cnn(images.to(self.cnn.weight.dtype))


def words_to_idx(V):
    return {word: i for i, word in enumerate(SPECIAL_TOKENS + [f"w{k}" for k in range(V - 4)])}


def tiny_captioner(cell, V=12, D=5, H=7, **keywords):
    keywords = dict(ignore_index=NULL, image_encoder=TinyEncoder()) | keywords
    return CaptioningRNN(words_to_idx(V), wordvec_dim=D, hidden_dim=H, cell_type=cell, **keywords).double()


def random_captions(R, L, V, generator=None):
    """R rows of <START> words <END> <NULL>..., with random lengths."""
    captions = torch.full((R, L), NULL)
    captions[:, 0] = START
    for row in captions:
        length = int(torch.randint(1, L - 1, (), generator=generator))
        row[1 : length + 1] = torch.randint(4, V, (length,), generator=generator)
        row[length + 1] = END
    return captions


def run_train(cell: str, arguments: Sequence[str]) -> None:
    """Do what train_<cell>.py does, in this process."""
    train.main(arguments, cell)


def run_test(cell: str, arguments: Sequence[str]) -> None:
    """Do what test_<cell>.py does, in this process."""
    test.main(arguments, cell)


CELLS_BY_NAME = cells.CELLS
PREFIXES = [cell.prefix for cell in cells.CELLS.values()]
MODULES = {cell.prefix: cell for cell in cells.CELLS.values()}


def function_arguments(name, dims):
    """Random float64 arguments for a forward such as "lstm_step_forward". Args: dims: N, T, D, H, grid_h, grid_w."""
    sizes = dict(zip(("N", "T", "D", "H", "grid_h", "grid_w"), dims))
    seed = int(torch.randint(2**31, ()))
    return {k: v / 0.7 for k, v in make_arguments(name, sizes, seed, torch.float64).items()}
