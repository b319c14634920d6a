"""Argument checks for the cells: one call at the start of each public function."""

import torch


def check_tensors(**arguments: tuple[torch.Tensor, str]) -> dict[str, int]:
    """Check the type, dtype, device and shape of named tensors; return the sizes of the letters.

    Each argument is ``name=(tensor, "N T D")``. The first tensor with a letter sets the letter's size,
    and all others must have the same; ``"4H"`` means four times H. All tensors must have the
    floating-point dtype and the device of the first one, and no dimension may be 0.

    Returns: dict, letter -> size. Raises: TypeError (not a tensor, or a wrong dtype), ValueError
    (a wrong device or shape).
    """
    sizes: dict[str, int] = {}
    first_name, (first, _) = next(iter(arguments.items()))
    for name, (tensor, wanted) in arguments.items():
        letters = wanted.split()
        if not isinstance(tensor, torch.Tensor):
            shape = "(" + ", ".join(letters) + ")"
            raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}, wanted a floating-point dtype")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, wanted {first.dtype} like {first_name}")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, wanted {first.device} like {first_name}")
        if 0 in tensor.shape:
            raise ValueError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
        fits = tensor.dim() == len(letters)
        for letter, size in zip(letters, tensor.shape):
            if fits and letter not in sizes:
                sizes[letter] = _expected(letter, sizes, size)
            fits = fits and size == sizes[letter]
        if not fits:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {_describe(letters, sizes)}")
    return sizes


def _expected(letter, sizes, size):
    factor = letter.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return int(factor) * sizes[letter[len(factor) :]] if factor.isdigit() else size


def _describe(letters, sizes):
    known = [str(_expected(letter, sizes, sizes.get(letter, letter))) for letter in letters]
    names, numbers = "(" + ", ".join(letters) + ")", "(" + ", ".join(known) + ")"
    return names if names == numbers else f"{names} = {numbers}"
