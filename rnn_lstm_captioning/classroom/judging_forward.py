"""Judge a forward: of a step, a sequence, the attention or the loss."""

from collections.abc import Collection

import torch
from torch import Tensor

from .calling import as_list, call_forward
from .comparing import OTHER_GRID, SIZES, SPECIAL_SIZES, UNKNOWN, close, compare, diagnose, exact, make_arguments, same
from .mistakes import LOOP, PAIRED
from .plain_cells import FORWARDS, SEQUENCES
from .plain_passes import forward
from .roots import (
    Judgement,
    Learner,
    Waits,
    at_sizes,
    judged_after,
    own_loop,
    right_but_for,
    roots_of,
    wait_for_what_it_calls,
    wrong_roots_of,
)


def judge_forward(name: str, learner: Learner) -> Judgement:
    """Judge a step, a sequence, the attention or the loss."""
    function = learner.functions[name]
    for label, sizes in {"": SIZES, **SPECIAL_SIZES}.items():
        arguments = make_arguments(name, sizes, 0, learner.dtype)
        for keywords in _ways_to_call(name, arguments):
            try:
                with at_sizes(label):
                    _compare_forward(name, function, learner, arguments, keywords, diagnosed=not label)
            except Waits as reason:
                return Judgement("waits", str(reason))
    _try_other_inputs(name, function, learner)
    return Judgement("right")


def _ways_to_call(name, arguments):
    """The keywords of each call: for the loss, some values of ignore_index."""
    if name != "temporal_softmax_loss":
        return [{}]
    return [{"ignore_index": 0}, {}, {"ignore_index": int(arguments["y"][0, 0])}]


def _compare_forward(name, function, learner, arguments, keywords, diagnosed):
    names = FORWARDS[name][1].split()

    def compute(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
        return forward(name, exact(arguments) | keywords, wrong)

    results, rest = call_forward(function, arguments, names, keywords)
    wanted = compute()
    if not same(results, wanted):
        explain = (lambda: _explain_forward(name, learner, arguments, results, compute)) if diagnosed else (lambda: "")
        compare(names, results, wanted, explain)
    if rest and name == "temporal_softmax_loss":  # CS231n's loss returns the gradient too

        def gradient(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
            x = exact(arguments)["x"].clone().requires_grad_()
            return torch.autograd.grad(forward(name, exact(arguments) | {"x": x} | keywords, wrong), x)

        found = as_list(rest[0], ["dx"])
        compare(["dx"], found, gradient(), lambda: diagnose(found, gradient) if diagnosed else "")


def _explain_forward(name, learner, arguments, found, compute):
    """The end of a sentence about a wrong forward. Raises: Waits if another function is the root."""
    if name not in SEQUENCES:
        known = diagnose(found, compute, pairs=())
        if not known:
            wait_for_what_it_calls(name, learner)
        return known or diagnose(found, compute) or UNKNOWN
    roots = wrong_roots_of(name, learner)
    loop = own_loop(name, learner) if all(learner.has(root) for root in roots_of(name)[:1]) else None
    if loop and roots:
        own = _own_results(loop, arguments)
        if own and same(found, own):
            raise Waits(right_but_for(learner.label(roots[0])))
        known = diagnose(found, lambda wrong: _own_results(loop, arguments, wrong) or compute(()), LOOP, pairs=())
        if known:
            return known
    known = diagnose(found, compute, pairs=())
    if known:
        return known
    if roots:
        raise Waits(judged_after(learner.label(roots[0])))
    known = diagnose(found, compute, LOOP, PAIRED)
    step = roots_of(name)[-1]
    text = f"your {learner.label(step)} is right: look at the loop over time" if learner.is_right(step) else ""
    return known or f"{UNKNOWN}; {text or _where_in_time(found[0], compute(())[0])}"


def _where_in_time(found, wanted):
    right = [t for t in range(wanted.shape[1]) if close(found[:, t], wanted[:, t])]
    if right and right[0] == 0:
        return "the first step is right, so look at what is carried from step to step"
    return "the first step is wrong already: look at the step, and at how it starts"


def _own_results(loop, arguments, wrong=()):
    """The results of a loop over the learner's steps; None if that fails."""
    try:
        return (loop.forward(*arguments.values(), wrong=wrong)[0],)
    except Exception:
        return None


def _try_other_inputs(name, function, learner):
    """Add remarks about inputs for which a right function fails."""
    if "A" in make_arguments(name, SIZES, 0, learner.dtype):
        arguments = make_arguments(name, OTHER_GRID, 0, learner.dtype)
        try:
            results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), {})
            works = same(results, forward(name, exact(arguments)))
        except Exception:
            works = False
        if not works:
            function.remark("it works for square grids only")
    if name in ("temporal_softmax_loss", "dot_product_attention"):
        arguments = make_arguments(name, SIZES, 0, learner.dtype)
        if name == "temporal_softmax_loss":
            arguments["x"] += 1000
        else:
            arguments["A"] *= 1e5
        if not _is_finite(name, function, arguments, {}):
            function.remark("it overflows when the scores are large: subtract the largest one before exp")
        elif name == "temporal_softmax_loss":
            arguments["x"] *= (1.0 + torch.arange(arguments["x"].shape[2])).to(learner.dtype)
            if not _is_finite(name, function, arguments, {}):
                function.remark("it takes the logarithm of a probability that is 0: use log_softmax, or logsumexp")
        if name == "temporal_softmax_loss":
            arguments = make_arguments(name, SIZES, 0, learner.dtype)
            arguments["y"] = torch.full_like(arguments["y"], 2)
            if not _is_finite(name, function, arguments, {"ignore_index": 2}):
                function.remark("it is not finite when all words are ignored; it should be 0")
    elif name == "softmax_forward":
        if not _is_finite(name, function, {"a": 1000 + make_arguments(name, SIZES, 0, learner.dtype)["a"]}, {}):
            function.remark("it overflows for large numbers: subtract the largest one of each row before exp")
    elif name not in SEQUENCES and name.endswith("forward"):
        arguments = make_arguments(name, SIZES, 0, learner.dtype)
        arguments[next(iter(arguments))] *= 1e4
        if not _is_finite(name, function, arguments, {}):
            function.remark("it is not finite for large inputs: use a tanh and a sigmoid that don't overflow")


def _is_finite(name, function, arguments, keywords):
    try:
        results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), keywords)
    except Exception:
        return False
    return all(bool(result.isfinite().all()) for result in results)
