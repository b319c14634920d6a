"""The settings of a captioner, as plain values. Each field has the name of a flag of train_*.py."""

from dataclasses import dataclass

IMAGE_INPUTS = ("h0", "first-token")
LARGEST_IMAGE = 2048  # pixels, the side of an image
IMAGE_NORMS = ("none", "batchnorm")
BEAM, LENGTH_PENALTY = 5, 1.0  # of the scripts, unless their flags say otherwise: docs/results.md
EXPORT_BITS = (32, 16, 8)  # of a weight, in a file to share


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a captioner; ``CaptioningRNN`` and ``ImageEncoder`` explain each value."""

    cell: str = "lstm"
    encoder: str = "regnet_x_400mf"
    encoder_layer: str | None = None  # the layer that gives the features; None: the last one before the classifier
    finetune_encoder: bool = False  # train the CNN too
    finetune_from: str | None = None  # train it from this layer on; None: all layers
    freeze_batchnorm: bool = False  # while the CNN is trained, its BatchNorm keeps its running statistics
    image_size: int | None = None  # pixels, of the images that the CNN is fed; None: the stored size
    image_input: str = "h0"
    image_norm: str = "none"
    hidden_dim: int = 512
    wordvec_dim: int = 256
    dropout: float = 0.25
    feature_dropout: float = 0.5
