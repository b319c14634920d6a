"""What goes into cv/: a checkpoint carries all that captioning a picture, or going on training, needs."""

import hashlib
import json
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from .captioner import CELLS, CaptioningRNN
from .encoder import ImageEncoder
from .errors import InputError
from .storage import load, replacing, save

FORMAT = 2  # 2 added image_input, image_norm and image_size to the settings; 1 had their defaults
FIELDS = {"format": int, "cell": str, "encoder": str, "image_size": int, "idx_to_token": list, "settings": dict}
FIELDS |= {"model": dict, "data": str}
# what of the settings is needed to make the captioner again
MODEL_SETTINGS = ("wordvec_dim", "hidden_dim", "finetune_encoder", "image_size", "image_input", "image_norm")
METADATA = "rnn_lstm_captioning"  # where the rest of a checkpoint stands in a safetensors file


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
    save(checkpoint, path)


def load_checkpoint(path):
    """The dict of a checkpoint, or of a model in a .safetensors file. Raises: InputError that says why it
    cannot be used."""
    read = _read_safetensors if Path(path).suffix == ".safetensors" else load
    try:
        checkpoint = read(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint; train_*.py writes them into cv/") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in FIELDS.items()):
        raise InputError(f"{path} is not a checkpoint of this project")
    if not isinstance(checkpoint.setdefault("training", None), dict | None):
        raise InputError(f"{path} has a training state that is none")
    if not all(isinstance(value, int | float | str | None) for value in checkpoint["settings"].values()):
        raise InputError(f"{path} has settings that are no plain values")
    if not all(isinstance(token, str) for token in checkpoint["idx_to_token"]):
        raise InputError(f"{path} has words that are not text")
    if not 1 <= checkpoint["format"] <= FORMAT:
        raise InputError(f"{path} has format {checkpoint['format']}; this version of the project reads 1 to {FORMAT}")
    if not 1 <= checkpoint["image_size"] <= 8192:
        raise InputError(f"{path} says that its pictures have {checkpoint['image_size']} pixels")
    if checkpoint["cell"] not in CELLS:
        raise InputError(f"{path} names an unknown cell, {checkpoint['cell']}")
    return checkpoint


def restore_captioner(checkpoint, path):
    """The captioner of a checkpoint's dict, in eval mode. Raises: InputError if its parts don't fit."""
    try:
        _check_sizes(checkpoint)
        captioner = _make_captioner(checkpoint)
        captioner.load_state_dict(checkpoint["model"])
        side = min(checkpoint["image_size"], 64)
        captioner.encode(torch.zeros(1, 3, side, side, dtype=torch.uint8))  # a picture may be too small for a CNN
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged: its weights don't fit its settings ({what})") from error
    return captioner.eval()


def _check_sizes(checkpoint):
    """Raise ValueError if a captioner by these settings would take more memory than its weights explain."""
    model, settings = checkpoint["model"], checkpoint["settings"]
    words, hidden = len(checkpoint["idx_to_token"]), settings["hidden_dim"]
    if model["word_embedding.W_embed"].shape != (words, settings["wordvec_dim"]) or len(model["cell.Wh"]) != hidden:
        raise ValueError("the word vectors or the cell are of another size")
    stored = sum(tensor.numel() for name, tensor in model.items() if name.startswith("image_encoder."))
    whole = torchvision.models.get_model_weights(checkpoint["encoder"]).DEFAULT.meta["num_params"]
    if whole > 50 * stored:  # the classifier, which a checkpoint does not hold, can be 25 times the rest
        raise ValueError(f"it has {stored} weights of {checkpoint['encoder']}")


def _make_captioner(checkpoint):
    settings = checkpoint["settings"]
    return CaptioningRNN(
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


# ------------------------------------------------------------------------------- a model to share


def export_safetensors(checkpoint, path):
    """Write a checkpoint's model, without its training state and paths, as a safetensors file.

    Args: checkpoint, the dict that :func:`load_checkpoint` returns.
    """
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint["model"].items()}
    rest = {name: checkpoint[name] for name in FIELDS if name != "model"}
    rest["settings"] = {name: checkpoint["settings"].get(name) for name in (*MODEL_SETTINGS, "precision")}
    rest["settings"] = {name: value for name, value in rest["settings"].items() if value is not None}
    rest |= {"data": Path(checkpoint["data"]).name, "sha256": _digest(tensors)}
    with replacing(path) as unfinished:
        # not its save_file, whose file only the owner may read
        unfinished.write_bytes(serialize(tensors, metadata={METADATA: json.dumps(rest, ensure_ascii=False)}))


def _read_safetensors(path):
    if not Path(path).exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            checkpoint = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, RecursionError) as error:
        raise ValueError(f"it is damaged, or not of this kind ({error})") from error
    if not isinstance(checkpoint, dict) or checkpoint.pop("sha256", None) != _digest(tensors):
        raise ValueError("its weights are damaged, or it was not exported by this project")
    return checkpoint | {"model": tensors}


def _digest(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
