"""Judge one function of a learner, and put the blame where it belongs: one root cause, one verdict.

A function that is wrong only because another one of the file is wrong waits for that one. Whether it is so is tried,
and not guessed: a loop over time is compared with the right loop over the learner's own steps, and a backward pass gets
the cache of a right forward pass.
"""

import torch

from .calling import Function, Mistake, borrowed
from .comparing import SIZES, close, exact, make_arguments
from .judging_backward import judge_backward
from .judging_forward import judge_forward
from .plain_passes import backward, forward
from .roots import Judgement, Learner

BORROWED = f"it uses functions of {__name__.split('.')[0]}"


def judge(name: str, learner: Learner) -> Judgement:
    """Judge one function. Raises: NotImplementedError if it is not written yet, and whatever the function raises."""
    function = learner.functions[name]
    if name.endswith("backward"):
        forward_name = name.replace("backward", "forward")
        reasons = {None: "is not in the file", "todo": "is not written yet", "failed": "fails"}
        reason = reasons.get(learner.outcomes.get(forward_name))
        if reason:
            _try_without_a_cache(name, function)
            return Judgement(
                "unchecked", f"it needs the cache of your own {learner.label(forward_name)}, which {reason}"
            )
    try:
        judged = judge_backward(name, learner) if name.endswith("backward") else judge_forward(name, learner)
    except Mistake as mistake:
        remarks = [remark for remark in function.remarks if "in place" in remark]  # they may be the reason
        raise type(mistake)("; ".join([str(mistake), *remarks])) from None
    if judged.outcome != "right":
        return judged
    if borrowed(function):
        function.remark(BORROWED)
    return Judgement("right", "but " + "; ".join(function.remarks) if function.remarks else "")


def _try_without_a_cache(name, function):
    """Raise NotImplementedError if a backward is as it is in the course's starter file, where it returns None."""
    forward_name = name.replace("backward", "forward")
    results = forward(forward_name, make_arguments(forward_name, SIZES, 0, torch.float64))
    try:
        function(*results, cache=(None,))
    except NotImplementedError:
        raise
    except Exception:  # it is written, and needs its cache
        return


def check_autograd(function: Function) -> None:
    """Raises: Mistake if autograd does not find the right gradients of a forward in torch."""
    name = function.name
    arguments = make_arguments(name, SIZES, 0, torch.float32)
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items()}
    result = function.code(*leaves.values())
    h = result[0] if isinstance(result, tuple | list) else result
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    if not h.requires_grad:
        raise Mistake(f"autograd can't find gradients through it: write {name.replace('forward', 'backward')} too")
    found = torch.autograd.grad(h, list(leaves.values()), upstream, allow_unused=True)
    wanted = backward(name, exact(arguments), (upstream.double(),))
    for key, gradient, right in zip(leaves, found, wanted):
        if gradient is None or not close(gradient, right):
            raise Mistake(f"with autograd, its gradient d{key} is wrong: is a tensor detached or copied?")
