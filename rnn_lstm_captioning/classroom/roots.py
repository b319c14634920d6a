"""Which function is to blame: what a function depends on, and the right loop over the learner's own steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .calling import Function, Mistake, Unusable, as_list, call_forward, calls
from .plain_cells import FORWARDS, PLAIN_CELLS
from .plain_passes import Loop

NOT_RIGHT = ("wrong", "failed", "waits", "todo")


class Judgement(NamedTuple):
    """An outcome, "right", "wrong", "waits" (for another function), "unchecked" or "todo", and a message."""

    outcome: str
    message: str = ""


class Learner:
    """All functions of a file, and the outcomes of those that were judged before."""

    def __init__(self, functions: Mapping[str, Function], outcomes: dict[str, str], dtype: torch.dtype) -> None:
        self.functions, self.outcomes, self.dtype = functions, outcomes, dtype

    def has(self, name: str) -> bool:
        return name in self.functions and self.outcomes.get(name) != "todo"

    def is_right(self, name: str) -> bool:
        return self.outcomes.get(name) == "right"

    def label(self, name: str) -> str:
        return self.functions[name].label if name in self.functions else name


class Waits(Exception):
    """Why a function can't be judged before another one is right."""


def right_but_for(label: str) -> str:
    """Why a function waits that is right, judged on its own."""
    return f"right on its own: correct your {label} first"


def judged_after(label: str) -> str:
    """Why a function waits that can't be judged yet."""
    return f"correct your {label} first, then it can be judged"


def roots_of(name: str) -> list[str]:
    """The functions that a sequence may call, in the order in which they should be corrected."""
    direction = name.rpartition("_")[2]
    prefix = name.split("_")[0]
    if PLAIN_CELLS[prefix].inputs:
        return ["dot_product_attention", f"{prefix}_step_{direction}"]
    return [f"{prefix}_step_{direction}"]


def wrong_roots_of(name: str, learner: Learner) -> list[str]:
    """Those of them that are written and not right."""
    return [root for root in roots_of(name) if learner.has(root) and learner.outcomes.get(root) in NOT_RIGHT]


def wait_for_what_it_calls(name: str, learner: Learner) -> None:
    """Raise Waits if a function calls another one that is wrong."""
    for root in calls(learner.functions[name].code, set(learner.functions) - {name}):
        if learner.outcomes.get(root) in NOT_RIGHT:
            raise Waits(judged_after(learner.label(root)))


def own_loop(name: str, learner: Learner) -> Loop:
    """The right loop over time around the learner's own steps."""
    prefix = name.split("_")[0]
    cell = PLAIN_CELLS[prefix]
    steps = {way: learner.functions.get(f"{prefix}_step_{way}") for way in ("forward", "backward")}
    attention = learner.functions.get("dot_product_attention")
    names = FORWARDS[f"{prefix}_step_forward"][1].split()
    S = len(cell.state)

    def step_forward(x: Tensor, state: tuple, image: Tensor, first: tuple, weights: tuple) -> tuple:
        inputs = cell.look(state, image, first, ())
        if cell.inputs and attention and learner.has("dot_product_attention"):
            inputs = (call_forward(attention, {"prev_h": state[0], "A": image}, ["attn", "attn_weights"], {})[0][0],)
        assert steps["forward"] is not None
        given = dict(enumerate((x, *state, *inputs, *weights)))
        values, cache = call_forward(steps["forward"], given, names, {})  # type: ignore[arg-type]
        return tuple(values), (cache, x, image, weights)

    def step_backward(dstate: tuple, cache: tuple) -> tuple:
        own, x, image, weights = cache
        assert steps["backward"] is not None
        wanted = ["d" + part.split()[0] for part in FORWARDS[f"{prefix}_step_forward"][0].split("  ")]
        found = as_list(steps["backward"](*dstate, cache=own), wanted)
        return found[0], tuple(found[1 : 1 + S]), torch.zeros_like(image), tuple(found[1 + S :])

    return Loop(prefix, step_forward, step_backward)


@contextmanager
def at_sizes(label: str) -> Iterator[None]:
    """What goes wrong in the block is said to be so at these sizes, such as "N = 1"; "" stands for the usual sizes."""
    try:
        yield
    except (NotImplementedError, Unusable, Waits):
        raise
    except Exception as error:
        if not label:
            raise
        if isinstance(error, Mistake):
            what, about = str(error).split(":")[0], ": is there a squeeze(), or a broadcast?"
        else:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            what, about = f"it raises {type(error).__name__}: {first}", ""
        raise Mistake(f"with {label}, {what}{about}") from error
