"""What goes into cv/: a checkpoint carries all that captioning a picture, or going on training, needs."""

import torch

from .captioner import CELLS, CaptioningRNN
from .encoder import ImageEncoder
from .errors import InputError
from .storage import replacing

FORMAT = 2  # 2 added image_input, image_norm and image_size to the settings; 1 had their defaults
FIELDS = {"format": int, "cell": str, "encoder": str, "image_size": int, "idx_to_token": list, "settings": dict}
FIELDS |= {"model": dict, "data": str}


def save_checkpoint(path, captioner, stored_size, settings, data_source, training=None):
    """Write a checkpoint: the old one at ``path`` stays until the new one is on the disk.

    Args: stored_size, the side in pixels of the data's pictures (the encoder may resize them); settings, dict of plain
        values; data_source, the caption file's path or "scenes"; training, the state to go on from.
    """
    checkpoint = {
        "format": FORMAT,
        "cell": captioner.cell_type,
        "encoder": captioner.image_encoder.name,
        "image_size": stored_size,
        "idx_to_token": captioner.idx_to_word,
        "settings": settings,
        "data": data_source,
        "model": captioner.state_dict(),
        "training": training,
    }
    with replacing(path) as unfinished:
        torch.save(checkpoint, unfinished)


def load_checkpoint(path):
    """The checkpoint's dict. Raises: InputError that says why it cannot be used."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint; train_*.py writes them into cv/") from error
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise InputError(f"{path} is not a checkpoint that can be read safely ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in FIELDS.items()):
        raise InputError(f"{path} is not a checkpoint of this project")
    if not 1 <= checkpoint["format"] <= FORMAT:
        raise InputError(f"{path} has format {checkpoint['format']}; this version of the project reads 1 to {FORMAT}")
    if checkpoint["image_size"] < 1:
        raise InputError(f"{path} says that its pictures have {checkpoint['image_size']} pixels")
    if checkpoint["cell"] not in CELLS:
        raise InputError(f"{path} names an unknown cell, {checkpoint['cell']}")
    checkpoint.setdefault("training", None)
    return checkpoint


def restore_captioner(checkpoint, path):
    """The captioner of a checkpoint's dict, in eval mode. Raises: InputError if its parts don't fit."""
    settings = checkpoint["settings"]
    try:
        captioner = CaptioningRNN(
            {token: index for index, token in enumerate(checkpoint["idx_to_token"])},
            wordvec_dim=settings["wordvec_dim"],
            hidden_dim=settings["hidden_dim"],
            cell_type=checkpoint["cell"],
            ignore_index=0,
            image_encoder=ImageEncoder(
                pretrained=False,
                name=checkpoint["encoder"],
                frozen=not settings["finetune_encoder"],
                image_size=settings.get("image_size"),
            ),
            image_input=settings.get("image_input", "h0"),
            image_norm=settings.get("image_norm", "none"),
        )
        captioner.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: its weights don't fit its settings ({error})") from error
    return captioner.eval()
