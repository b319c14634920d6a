"""The recurrent cells. Each file can be read alone, from top to bottom: the equations, one step, the sequence, and both
backward passes by hand. The other files hold the layers around a cell, the losses, and the arithmetic and checks that
all of them use. This package imports torch and nothing else.
"""

from .attention import *
from .gru import *
from .interface import RecurrentCell
from .lstm import *
from .rnn import *

# the registry: --cell, the captioner, the checker, the figures and the tests look up the cells here
CELLS: dict[str, type[RecurrentCell]] = {cell.name: cell for cell in (RNN, LSTM, GRU, AttentionLSTM)}
