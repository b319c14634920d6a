"""Checkpoints, the files in cv/: a checkpoint holds all that is needed to caption an image, or to continue training.

Only this module knows the keys of the file; all other code uses a :class:`Checkpoint`.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from ..cells import CELLS
from ..data.vocabulary import LONGEST_WORD
from ..errors import InputError
from ..files import open_file
from ..storage import load, replacing, save
from .captioner import CaptioningRNN, build_captioner, settings_of
from .settings import EXPORT_BITS, LARGEST_IMAGE, ModelSettings

# 2 added image_input, image_norm and image_size to the settings; files of format 1 have their defaults
# 3 holds the weights of the affine maps as in nn.Linear; before, they were transposed
FORMAT = 3
CONFIDENCE = "confidence."  # in a safetensors file, begins the names of the tensors of the confidence
SMALL_CONVOLUTION = 200_000  # weights; smaller ones have at least 16 bits in a safetensors file
SCALE = ".scale"  # in a safetensors file, ends the name of the scales of a tensor of integers
METADATA = "rnn_lstm_captioning"  # in a safetensors file, the key of everything except the weights
# attribute -> its key in the file, and its type there
KEYS = {
    "cell": ("cell", str),
    "encoder": ("encoder", str),
    "stored_size": ("image_size", int),
    "idx_to_word": ("idx_to_token", list),
    "settings": ("settings", dict),
    "data": ("data", str),
    "weights": ("model", dict),
}


@dataclass
class Checkpoint:
    """The contents of a checkpoint.

    Attributes: cell, a name in ``cells.CELLS``; encoder, a torchvision name; stored_size, the side in pixels of the
        images in the caption file; idx_to_word; settings, name -> plain value: those of :class:`ModelSettings`, and
        of the run; data, the caption file's path or "scenes"; weights, the captioner's state dict; training, the
        trainer's state, or None if the file can't continue a run; confidence, the tensors of
        :class:`~rnn_lstm_captioning.evaluation.confidence.Confidence` by name, if an exported model has them.
    """

    cell: str
    encoder: str
    stored_size: int
    idx_to_word: list[str]
    settings: dict
    data: str
    weights: dict[str, Tensor]
    training: dict | None = None
    confidence: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    path: str | Path,
    captioner: CaptioningRNN,
    stored_size: int,
    data: str = "",
    settings: dict | None = None,
    training: dict | None = None,
) -> None:
    """Write a checkpoint; the old one at ``path`` stays until the new one is on the disk.

    Args: stored_size, the side in pixels of the data's images; data, the caption file's path or "scenes"; settings,
        plain values, those of the run; the captioner's own are added; training, the trainer's state.
    """
    model = settings_of(captioner)
    values = {
        "cell": model.cell,
        "encoder": model.encoder,
        "stored_size": stored_size,
        "idx_to_word": captioner.idx_to_word,
        "settings": (settings or {}) | asdict(model),
        "data": data,
        "weights": captioner.state_dict(),
    }
    save({"format": FORMAT} | {KEYS[k][0]: v for k, v in values.items()} | {"training": training}, path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or a model in a .safetensors file. Raises: InputError that says why it can't be used."""
    shared = Path(path).suffix == ".safetensors"
    read = _read_safetensors if shared else load
    try:
        raw = read(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint; train_*.py writes them into cv/") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), kind) for key, kind in KEYS.values()):
        raise InputError(f"{path} is not a checkpoint of this project")
    if not isinstance(raw.get("format"), int) or not 1 <= raw["format"] <= FORMAT:
        given = raw.get("format") if isinstance(raw.get("format"), int) else "no number"
        raise InputError(f"{path} has format {str(given)[:20]}; this version of the project reads 1 to {FORMAT}")
    found = Checkpoint(**{name: raw[key] for name, (key, _) in KEYS.items()}, training=raw.get("training"))
    if shared:
        found.confidence = raw["confidence"]
    if not all(isinstance(value, Tensor) and value.dtype == torch.float32 for value in found.confidence.values()):
        raise InputError(f"{path} is damaged: its confidence does not hold numbers")
    if not isinstance(found.training, dict | None):
        raise InputError(f"{path} has a training state that is not a dict")
    if not all(isinstance(value, int | float | str | None) for value in found.settings.values()):
        raise InputError(f"{path} has settings that are not plain values")
    if not all(isinstance(word, str) for word in found.idx_to_word):
        raise InputError(f"{path} has words that are not text")
    for size in (found.stored_size, found.settings.get("image_size") or found.stored_size):
        if not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE:
            raise InputError(f"{path} says that its images have {size} pixels; at most {LARGEST_IMAGE} can be used")
    if not all(len(word) <= LONGEST_WORD for word in found.idx_to_word):
        raise InputError(f"{path} has a word of more than {LONGEST_WORD} letters")
    for name, tensor in (found.weights | found.confidence).items():
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise InputError(f"{path} holds weights that are infinite or NaN, in {name}: its training went wrong")
    if found.cell not in CELLS:
        raise InputError(f"{path} names an unknown cell, {found.cell[:40]}")
    return found


def restore_captioner(checkpoint: Checkpoint, path: str | Path) -> CaptioningRNN:
    """The captioner of a checkpoint, in eval mode. Raises: InputError if its parts don't fit."""
    try:
        _check_sizes(checkpoint)
        word_to_idx = {word: index for index, word in enumerate(checkpoint.idx_to_word)}
        captioner = build_captioner(_model_settings(checkpoint), word_to_idx)
        captioner.load_state_dict(checkpoint.weights)
        captioner.eval()  # in training mode, the image below would change the statistics of BatchNorm
        side = min(checkpoint.stored_size, 64)
        # this fails if the images are too small for the CNN
        features = captioner.encode(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        if not features.isfinite().all():
            raise ValueError("its features are infinite or NaN")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged: its weights don't fit its settings ({what})") from error
    return captioner


def load_weights(checkpoint: Checkpoint, path: str | Path, captioner: CaptioningRNN) -> None:
    """Copy all weights of a checkpoint, with those of its encoder, into a captioner.

    Raises: InputError if the checkpoint was trained with another cell, vocabulary, encoder or size.
    """
    if checkpoint.cell != captioner.cell_type or checkpoint.idx_to_word != captioner.idx_to_word:
        raise InputError(f"{path} was trained with another cell or vocabulary; it can't be used here")
    if checkpoint.encoder != captioner.image_encoder.name:
        raise InputError(f"{path} was trained with --encoder {checkpoint.encoder}, not {captioner.image_encoder.name}")
    try:
        captioner.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit these settings ({str(error).splitlines()[-1].strip()})") from error


def _model_settings(checkpoint):
    """The model's settings. Format 1, and older files of format 2, lack some: these have their default values."""
    given = {f.name: checkpoint.settings[f.name] for f in fields(ModelSettings) if f.name in checkpoint.settings}
    needed = {"hidden_dim", "wordvec_dim", "finetune_encoder"} - given.keys()
    if needed:
        raise KeyError(f"no {', '.join(sorted(needed))}")
    return ModelSettings(**given | {"cell": checkpoint.cell, "encoder": checkpoint.encoder})


def _check_sizes(checkpoint):
    """Raise ValueError if a captioner with these settings would be much larger than the weights in the file."""
    weights, settings = checkpoint.weights, checkpoint.settings
    words, hidden = len(checkpoint.idx_to_word), settings["hidden_dim"]
    vectors, name = weights["word_embedding.W_embed"], "vocabulary_projection"
    projection = weights[f"{name}.weight"] if f"{name}.weight" in weights else weights[f"{name}.W"].T
    if vectors.shape != (words, settings["wordvec_dim"]) or projection.shape != (words, hidden):
        raise ValueError("the word vectors or the cell have another size")
    stored = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("image_encoder."))
    whole = torchvision.models.get_model_weights(checkpoint.encoder).DEFAULT.meta["num_params"]
    cut = settings.get("encoder_layer") and whole < 2e8
    # the classifier, which is not in a checkpoint, can be 25 times as large as the rest
    if whole > 50 * stored and not cut:
        raise ValueError(f"it has {stored} weights of {checkpoint.encoder}")


# ------------------------------------------------------------------------------- a model to share


def export_safetensors(checkpoint: Checkpoint, path: str | Path, bits: int = 32) -> None:
    """Write the model of a checkpoint, without its training state and paths, as a safetensors file.

    Args: bits, of each weight of a matrix or a convolution: 32; 16, as float16; or 8, as an integer from -127 to 127
        times a scale, one for each row. Vectors keep 32 bits. Convolutions with fewer than SMALL_CONVOLUTION weights
        keep at least 16: they save little, and every later layer of the CNN makes their errors larger.
    """
    tensors = _rounded({name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}, bits)
    tensors |= {CONFIDENCE + name: tensor.contiguous() for name, tensor in checkpoint.confidence.items()}
    kept = {f.name for f in fields(ModelSettings)} | {"precision"}
    settings = {k: v for k, v in checkpoint.settings.items() if k in kept and v is not None}
    values = vars(checkpoint) | {"settings": settings, "data": Path(checkpoint.data).name}
    rest = {"format": FORMAT} | {key: values[name] for name, (key, _) in KEYS.items() if name != "weights"}
    rest["sha256"] = _digest(tensors)
    with replacing(path) as unfinished:
        # safetensors' save_file would write a file that only its owner may read
        unfinished.write_bytes(serialize(tensors, metadata={METADATA: json.dumps(rest, ensure_ascii=False)}))


def _read_safetensors(path):
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("it is damaged, or of another kind")
        try:
            header = json.loads(file.read(length))
            raw = json.loads(header.pop("__metadata__", {}).get(METADATA, "{}"))
            described = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if described != size:
                raise ValueError(f"its header describes {described} bytes, and it has {size}")
            file.seek(0)
            tensors = deserialize(file.read())  # not mapped: another program may change the file
        except (SafetensorError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"it is damaged, or of another kind ({error})") from error
    if not isinstance(raw, dict) or raw.pop("sha256", None) != _digest(tensors):
        raise ValueError("its weights are damaged, or it was not exported by this project")
    weights = _unrounded(tensors)
    of_confidence = [name for name in weights if name.startswith(CONFIDENCE)]
    confidence = {name.removeprefix(CONFIDENCE): weights.pop(name) for name in of_confidence}
    return raw | {"model": weights, "confidence": confidence}


def _rounded(tensors, bits):
    """The matrices and convolutions among some tensors with 16 or 8 bits; the others as they are."""
    if bits not in EXPORT_BITS:
        raise InputError(f"bits is {bits}, wanted one of {', '.join(map(str, EXPORT_BITS))}")
    found = {}
    for name, tensor in tensors.items():
        if bits == 32 or tensor.dim() < 2 or not tensor.is_floating_point():
            found[name] = tensor
        elif bits == 16 or (tensor.dim() == 4 and tensor.numel() < SMALL_CONVOLUTION):
            found[name] = tensor.half()
        else:
            scale = tensor.abs().amax(tuple(range(1, tensor.dim())), keepdim=True).clamp(min=1e-12) / 127
            found |= {name: (tensor / scale).round().to(torch.int8), name + SCALE: scale}
    return found


def _unrounded(tensors):
    """The tensors of :func:`_rounded`, in float32."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE)
            if scale is None or scale.shape != tensor.shape[:1] + (1,) * (tensor.dim() - 1):
                raise ValueError(f"it has no scale for {name}")
            found[name] = tensor * scale.float()
        elif not name.endswith(SCALE):
            found[name] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return found


def _digest(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
