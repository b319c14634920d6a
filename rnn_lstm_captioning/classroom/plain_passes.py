"""The forward and the backward pass of any plain function, and the loop over time around a cell's step, each with the
known mistakes. The loop takes any functions of a step, so it can run over a learner's own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .mistakes import MISTAKES
from .plain_cells import BASICS, PLAIN_CELLS, SEQUENCES, Values, Wrong, attend, pick, softmax_loss


def forward(name: str, arguments: Mapping[str, Any], wrong: Wrong = (), values: Values = None) -> tuple[Tensor, ...]:
    """The results of a ``*_forward``, of the attention or the loss, without the cache."""
    tensors = tuple(arguments.values())
    if name in BASICS:
        return (BASICS[name][1](*tensors, wrong=wrong),)
    if name == "temporal_softmax_loss":
        return (softmax_loss(**arguments, wrong=wrong),)
    if name == "dot_product_attention":
        return attend(**arguments, wrong=wrong)
    prefix = name.split("_")[0]
    if name not in SEQUENCES:
        return PLAIN_CELLS[prefix].step(*tensors, wrong=wrong, values=values)
    return (plain_loop(prefix, wrong).forward(*tensors, wrong=wrong)[0],)


def backward(
    name: str, arguments: Mapping[str, Tensor], upstream: tuple[Tensor, ...], wrong: Wrong = ()
) -> tuple[Tensor, ...]:
    """The gradients of the arguments of the forward called ``name``, given the upstream gradients."""
    if name in SEQUENCES:
        loop = plain_loop(name.split("_")[0], wrong)
        _, caches = loop.forward(*arguments.values())
        return loop.backward(upstream[0], caches, arguments, wrong)
    if "dnext_c ignored" in wrong and len(upstream) > 1:
        upstream = (upstream[0], torch.zeros_like(upstream[1]))
    if "dnext_h ignored" in wrong:
        upstream = (torch.ones_like(upstream[0]), *upstream[1:])
    results, inputs = _with_graph(lambda *tensors: forward(name, dict(zip(arguments, tensors)), wrong), arguments)
    gradients = torch.autograd.grad(results[: len(upstream)], inputs, upstream)
    return tuple(averaged(gradient, key, len(upstream[0]), wrong) for key, gradient in zip(arguments, gradients))


class _Consulted(frozenset):
    """An empty set that notes which names were looked up."""

    def __new__(cls) -> "_Consulted":
        made = super().__new__(cls)
        made.names = []  # type: ignore[attr-defined]
        return made

    def __contains__(self, name: object) -> bool:
        self.names.append(name)  # type: ignore[attr-defined]
        return False


def possible_mistakes(compute: Callable[[Wrong], object]) -> list[str]:
    """The mistakes that a computation can make, in the order in which they are tried."""
    consulted = _Consulted()
    compute(consulted)
    names = set(consulted.names)  # type: ignore[attr-defined]
    return [name for name in MISTAKES if name in names]


def averaged(gradient: Tensor, key: str, N: int, wrong: Wrong) -> Tensor:
    """The gradient, as some mistakes change it."""
    mean = ("db mean" in wrong and key == "b") or ("dW mean" in wrong and key.startswith("W"))
    return gradient / N if mean else gradient


def _with_graph(function, arguments):
    """The results of a function, and the arguments as leaves of their graph."""
    inputs = [value.detach().requires_grad_() for value in arguments.values()]
    nothing = 0 * sum(value.sum() for value in inputs)  # if a mistake cuts a path, the gradient is zero
    return [result + nothing for result in function(*inputs)], inputs


# -------------------------------------------------------------------------------- the loop over time


def plain_loop(prefix: str, wrong: Wrong = ()) -> "Loop":
    """The loop over the plain steps of a cell, which make these mistakes."""
    cell = PLAIN_CELLS[prefix]

    def step(x: Tensor, state: tuple, image: Tensor, first: tuple, weights: tuple) -> tuple:
        """One step with its attention, as a function of everything that it depends on."""
        state = tuple(state)
        return cell.step(x, *state, *cell.look(state, image, first, wrong), *weights, wrong=wrong)

    def step_forward(x: Tensor, state: tuple, image: Tensor, first: tuple, weights: tuple) -> tuple:
        return step(x, state, image, first, weights), (x, state, image, first, weights)

    def step_backward(dstate: tuple, cache: tuple) -> tuple:
        x, state, image, first, weights = cache
        named = dict(enumerate((x, *state, image, *weights)))
        S = len(state)
        results, inputs = _with_graph(
            lambda *t: step(t[0], t[1 : 1 + S], t[1 + S], first, t[2 + S :]),
            named,
        )
        found = torch.autograd.grad(results, inputs, dstate)
        return found[0], found[1 : 1 + S], found[1 + S], found[2 + S :]

    return Loop(prefix, step_forward, step_backward)


class Loop(NamedTuple):
    """The loop over time, forward and backward, around any two functions of a step: ``step_forward(x, state, image,
    first state, weights) -> state, cache`` and ``step_backward(dstate, cache) -> dx, dstate, dimage, dweights``."""

    prefix: str
    step_forward: Callable
    step_backward: Callable

    def forward(self, x: Tensor, image: Tensor, *weights: Tensor, wrong: Wrong = ()) -> tuple[Tensor, list]:
        """x (N, T, D) -> h (N, T, H), and the caches of the steps."""
        cell = PLAIN_CELLS[self.prefix]
        first = state = cell.start(image, wrong)
        N, T, _ = x.shape
        if "x reshaped" in wrong:
            x = x.reshape(T, N, -1).transpose(0, 1)
        out: list[Tensor] = []
        caches: list = []
        skipped = {0} if "first skipped" in wrong else {T - 1} if "last skipped" in wrong else set()
        if "one step alone" in wrong:
            skipped = set(range(1, T))
        for t in reversed(range(T)) if "reversed" in wrong else range(T):
            if t in skipped:
                out.append(torch.zeros_like(first[0]))
                continue
            state = tuple(
                start if f"{name} not carried" in wrong else now for name, now, start in zip(cell.state, state, first)
            )
            if t == 0 and "h0 not used" in wrong:
                state = (torch.zeros_like(state[0]), *state[1:])
            x_t = x[:, 0 if "x of the first" in wrong else t]
            state, cache = self.step_forward(x_t, state, image, first, weights)
            caches.append(cache)
            out.append(state[1] if "c kept for h" in wrong and len(state) > 1 else state[0])
        if "first skipped keeps h0" in wrong:
            out = [first[0], *out[:-1]]
        if "h never stored" in wrong:
            out = [0 * h for h in out]
        if "last for all" in wrong:
            out = [out[-1]] * T
        if "reversed" in wrong:
            out.reverse()
        h = torch.stack(out, 1)
        return h.transpose(0, 1).reshape(h.shape) if "h reshaped" in wrong else h, caches

    def backward(
        self, dh: Tensor, caches: list, arguments: Mapping[str, Tensor], wrong: Wrong = ()
    ) -> tuple[Tensor, ...]:
        """dh (N, T, H) and the caches of the steps -> the gradients of the arguments."""
        cell = PLAIN_CELLS[self.prefix]
        x, image, *weights = arguments.values()
        N, T, H = dh.shape
        zero = dh.new_zeros(N, H)
        dx, dimage, dweights = torch.zeros_like(x), torch.zeros_like(image), [torch.zeros_like(w) for w in weights]
        dstate = [zero] * len(cell.state)
        times = range(T) if "backward runs forwards" in wrong else reversed(range(T))
        skipped = {0} if "first skipped" in wrong else {T - 1} if "last skipped" in wrong else set()
        last = T - 1
        if "one step alone" in wrong:
            skipped = set(range(last))
        if "dh starts with dh" in wrong:
            dstate[0] = dh[:, last]
        for t in times:
            if t in skipped:
                continue
            dh_t = dh[:, last - t] if "dh reversed" in wrong else dh[:, t]
            dh_t = dh[:, -1] if "last dh alone" in wrong else dh_t
            dh_t = torch.zeros_like(dh_t) if "dh of the last step" in wrong and t < last else dh_t
            given = list(dstate)
            alone = {"dh not carried": dh_t} | ({"dh not added": given[0]} if t < last else {})
            given[0] = pick(wrong, alone, dh_t + given[0])
            if len(given) > 1:
                if "dc not carried" in wrong:
                    given[1] = zero
                if ("aliased" in wrong and t == last) or "dh into carried c" in wrong:
                    given[1] = given[1] + dh_t
                if "carried into c" in wrong:
                    given = [dh_t, given[1] + dstate[0]]
                if "dh for dc" in wrong:
                    given[1] = given[0]
            if "dh twice" in wrong:
                given[0] = given[0] + dh_t
            dx_t, dbefore, dimage_t, dweights_t = self.step_backward(tuple(given), caches[t])
            dx[:, t] = dx_t
            dimage = dimage + dimage_t
            new = list(dbefore)
            if "dprev_h added up" in wrong:
                new[0] = new[0] + dstate[0]
            if "dprev_h keeps dh" in wrong:
                new[0] = new[0] + given[0]
            dstate = [new[-1]] * len(new) if "aliased throughout" in wrong else new
            dweights_t = [d / T for d in dweights_t] if "dW by T" in wrong else dweights_t
            overwritten, never = "dW overwritten" in wrong, "dW never" in wrong
            added = zip(dweights, dweights_t)
            dweights = [new if overwritten else old if never else old + new for old, new in added]
        if "dx reversed" in wrong:
            dx = dx.flip(1)
        if cell.inputs:  # the image is the start, through the mean over the grid, too
            named = {"A": image}
            results, inputs = _with_graph(lambda A: cell.start(A, wrong), named)
            dstart = list(dstate)
            dstart = [0 * d if "dA start" in wrong else d for d in dstart]
            dstart = [d * image[0, 0].numel() if "dA start sum" in wrong else d for d in dstart]
            dimage = dimage + torch.autograd.grad(results, inputs, tuple(dstart))[0]
        else:
            dimage = dimage + dstate[0]
        if "dh0 zero" in wrong and not cell.inputs:
            dimage = torch.zeros_like(dimage)
        if "dh0 is dh" in wrong and not cell.inputs:
            dimage = dh[:, 0]
        names = list(arguments)[2:]
        weights_found = [averaged(d, key, N, wrong) for key, d in zip(names, dweights)]
        return (dx, dimage, *weights_found)
