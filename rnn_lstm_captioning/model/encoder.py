"""A torchvision CNN as a spatial feature extractor."""

import re
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.transforms.v2.functional import resize

from ..errors import InputError
from ..storage import load

# torchvision's names for the layers after the last spatial features of a classification network
HEAD = {"avgpool", "classifier", "fc", "head", "heads"}


FEATURES = "features"  # the name of what a cut network returns


class ImageEncoder(nn.Module):
    """The convolutional part of a torchvision classification network.

    Args:
        pretrained: load torchvision's ImageNet weights (torchvision downloads them once).
        verbose: show the download's progress.
        name: a torchvision classification network, such as "regnet_x_400mf" or "mobilenet_v2".
        weights_file: a file with a state dict of that network, with its 1,000-class head; it overrides pretrained.
        frozen: never train the CNN: it gets no gradients, and BatchNorm keeps its running statistics.
        finetune_from: if it is not frozen, train it from this layer on only, such as "features.14" (mobilenet_v2).
        freeze_batchnorm: if it is not frozen, BatchNorm keeps its running statistics all the same: those of ImageNet
            are better than those of a few thousand images.
        image_size: the side in pixels to which images are resized; None: they are not resized.
        layer: the layer that gives the features, such as "features.13" (mobilenet_v2) or "layer3" (resnet50); an
            earlier layer has a finer grid. None: the last one before the classifier.
    Attributes: out_channels, the C of its features; name; frozen; finetune_from; freeze_batchnorm; image_size; layer;
        random_weights, whether it was built with random weights.
    Raises: InputError if the network has no such layer or no spatial features, or its weights can't be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        pretrained: bool = True,
        verbose: bool = False,
        *,
        name: str = "regnet_x_400mf",
        weights_file: str | Path | None = None,
        frozen: bool = True,
        finetune_from: str | None = None,
        freeze_batchnorm: bool = False,
        image_size: int | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.frozen, self.image_size, self.layer = name, frozen, image_size, layer
        self.finetune_from, self.freeze_batchnorm = finetune_from, freeze_batchnorm
        self.random_weights = weights_file is None and not pretrained
        network = _make_network(name)
        if weights_file is not None:
            _load_weights(network, name, _read_state_dict(weights_file), weights_file)
        elif pretrained:
            _load_weights(network, name, _download_state_dict(name, verbose), "torchvision's file")
        network.requires_grad_(not frozen)
        if finetune_from is not None:
            _freeze_before(network, name, finetune_from)
        self.cnn = (_up_to(network, name, layer) if layer else _without_head(network)).to(
            memory_format=torch.channels_last
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.cnn.eval()
        try:
            side = min(image_size or 64, 64)
            with torch.no_grad():
                _, out_channels, _, _ = self._features(torch.zeros(1, 3, side, side)).shape
            self.out_channels: int = out_channels
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"--encoder {name} has no spatial features that this project can use; "
                "use a plain convolutional network such as regnet_x_400mf, resnet50 or mobilenet_v2"
            ) from error
        self.train(not frozen)

    def _features(self, images):
        found = self.cnn(images)
        return found[FEATURES] if self.layer else found

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        if self.frozen:
            self.cnn.eval()  # otherwise its BatchNorm statistics would change
        for norm in self._batch_norms():
            if self.freeze_batchnorm or not any(p.requires_grad for p in norm.parameters()):
                norm.eval()
        return self

    def _batch_norms(self):
        return [module for module in self.cnn.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Measure the BatchNorm statistics of a network with random weights, which has none yet, on these images.

        Without them, the features of a deep residual network overflow.
        """
        norms = self._batch_norms()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # use the statistics of this batch alone
            norm.train()
        self(images)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, height, width), uint8 or float in [0, 1] -> features (N, C, grid_h, grid_w).

        Floats outside [0, 1], such as those of ``torch.randn``, are taken as normalised already, with a warning.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images has shape {tuple(images.shape)}, wanted (N, 3, height, width)")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images has dtype {images.dtype}, wanted uint8, or floats in [0, 1]")
        normalised = False
        if images.dtype != torch.uint8:
            lowest, highest = images.aminmax()
            if not (lowest >= -10 and highest <= 10):  # NaN is not, either
                raise ValueError("images are floats far outside [0, 1]: divide by 255")
            normalised = bool(lowest < 0 or highest > 1)
        if normalised:
            warnings.warn(
                "images are floats outside [0, 1]: the encoder takes them as normalised already", stacklevel=2
            )
        if self.image_size and images.shape[2:] != (self.image_size, self.image_size):
            images = resize(images, [self.image_size, self.image_size], antialias=True)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        images = images if normalised else (images - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._features(images)
        if features.dim() != 4:
            raise ValueError(f"features has shape {tuple(features.shape)}, wanted (N, C, grid_h, grid_w)")
        return features


def _without_head(network):
    layers = dict(network.named_children())
    head = next((i for i, layer in enumerate(layers) if layer in HEAD), None)
    return nn.Sequential(*list(layers.values())[:head])


def _freeze_before(network, name, layer):
    """Train a network from a layer on only. torchvision's networks list their parameters in the order of use."""
    parameters = list(network.named_parameters())
    first = next((i for i, (key, _) in enumerate(parameters) if key.startswith(f"{layer}.")), None)
    if first is None:
        known = ", ".join(dict.fromkeys(".".join(key.split(".")[:2]) for key, _ in parameters))
        raise InputError(f"--finetune-from: {name} has no layer {layer} with weights; it has {known[:600]}")
    for _, parameter in parameters[:first]:
        parameter.requires_grad_(False)


def _up_to(network, name, layer):
    """The network from the image to the output of a layer."""
    _, nodes = get_graph_node_names(network)
    if layer not in nodes and not any(node.startswith(f"{layer}.") for node in nodes):
        known = ", ".join(dict.fromkeys(".".join(node.split(".")[:2]) for node in nodes if "." in node))
        raise InputError(f"{name} has no layer {layer}; it has {known[:600]}")
    return create_feature_extractor(network, {layer: FEATURES})


def _make_network(name):
    if name not in torchvision.models.list_models(module=torchvision.models):  # no detection, segmentation, video
        raise InputError(
            f"--encoder {name} is not a classification network of torchvision; try regnet_x_400mf or mobilenet_v2"
        )
    return torchvision.models.get_model(name, weights=None)


def _download_state_dict(name, progress):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=progress, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); "
            "use --encoder-weights FILE with a state dict that you have, or --encoder-weights none for random weights"
        ) from error


def _read_state_dict(path):
    try:
        return load(path)
    except FileNotFoundError as error:
        raise InputError(f"--encoder-weights {path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--encoder-weights {path} is not a file of weights: {error}") from error


def _load_weights(network, name, state, source):
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    plain = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not plain or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"--encoder-weights needs a state dict (a dict of tensors), and {source} is not one")
    # in the published DenseNet files, norm1 is called norm.1; old files have no num_batches_tracked
    state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])", r"\1\2", key): v for key, v in state.items()}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    differing = sorted(wanted.keys() ^ state.keys()) or sorted(
        key for key in wanted if wanted[key].shape != state[key].shape
    )
    if differing:
        raise InputError(
            f"{source} does not fit --encoder {name}: {len(differing)} tensors are missing, "
            f"not needed or of another shape, such as {differing[0]}"
        )
    infinite = [key for key, value in state.items() if not value.isfinite().all()]
    if infinite:
        raise InputError(f"{source} has weights that are infinite or NaN, in {infinite[0]}")
    network.load_state_dict(state, strict=False)  # only num_batches_tracked is missing, as checked above
