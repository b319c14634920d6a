"""The flags of all commands. This module needs no torch, so --help and a wrong flag are answered at once."""

import os
from pathlib import Path

from ..model.settings import BEAM, EXPORT_BITS, IMAGE_INPUTS, IMAGE_NORMS, LENGTH_PENALTY
from ..training.settings import BATCHINGS, OPTIMIZERS, PRECISIONS, SCHEDULES, SCORES
from .arguments import ArgumentParser, device, finite, name, non_negative, path, port_number, positive, probability

SPLITS = ("train", "val", "test")


def train_flags(cell: str | None = None) -> ArgumentParser:
    """Args: cell, of a script that trains this cell only."""
    kind = f"the {cell} captioner" if cell else "a captioner"
    parser = ArgumentParser(description=f"Train {kind}. @FILE reads arguments from a file.")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=name,
        metavar="FILE",
        help="a caption file, or 'scenes'; default: datasets/coco.pt if it exists, else the scenes",
    )
    data.add_argument("--download", action="store_true", help="first download the course's coco.pt (397 MB)")
    data.add_argument("--num-train", type=positive(int), metavar="N", help="use the first N training captions only")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--cell",
        type=name,
        metavar="NAME|FILE",
        help="lstm, gru or another cell, or a Python file with your own functions, such as mine.py or mine.py:lstm",
    )
    model.add_argument("--unchecked", action="store_true", help="with --cell FILE: train without checking the file")
    model.add_argument(
        "--encoder", type=name, default="regnet_x_400mf", metavar="NAME", help="a torchvision CNN (%(default)s)"
    )
    model.add_argument(
        "--encoder-weights", type=name, metavar="imagenet|none|FILE", help="default: imagenet; for the scenes: none"
    )
    model.add_argument(
        "--encoder-layer", type=name, metavar="NAME", help="use the features of this layer of the CNN (the last one)"
    )
    model.add_argument("--finetune-encoder", action="store_true", help="train the CNN too; slower")
    model.add_argument(
        "--finetune-from", type=name, metavar="LAYER", help="with --finetune-encoder: from this layer on (the first)"
    )
    model.add_argument(
        "--freeze-batchnorm",
        action="store_true",
        help="with --finetune-encoder: BatchNorm keeps its statistics; for a CNN that has learned from more images",
    )
    model.add_argument("--image-size", type=positive(int), metavar="PIXELS", help="fed to the CNN (the stored size)")
    model.add_argument(
        "--augment", action="store_true", help="random crops and mirroring; the CNN then runs in every step"
    )
    model.add_argument(
        "--image-input",
        choices=IMAGE_INPUTS,
        default="h0",
        help="how a cell without attention reads the image (%(default)s)",
    )
    model.add_argument(
        "--image-norm",
        choices=IMAGE_NORMS,
        default="none",
        help="normalise the projected features, for cells without attention (%(default)s)",
    )
    model.add_argument("--hidden-dim", type=positive(int), default=512, metavar="H", help="hidden size (%(default)s)")
    model.add_argument(
        "--wordvec-dim", type=positive(int), default=256, metavar="D", help="size of a word vector (%(default)s)"
    )
    model.add_argument(
        "--dropout",
        type=probability,
        default=0.25,
        metavar="P",
        help="dropout of word vectors and hidden states (%(default)s)",
    )
    model.add_argument(
        "--feature-dropout", type=probability, default=0.5, metavar="P", help="dropout of features (%(default)s)"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive(int), default=60, help="(%(default)s)")
    training.add_argument(
        "--batch-size", type=positive(int), default=256, metavar="N", help="captions per batch (%(default)s)"
    )
    training.add_argument(
        "--batching", choices=BATCHINGS, default="padded", help="length: captions of one length only (%(default)s)"
    )
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="(%(default)s)")
    training.add_argument("--learning-rate", type=positive(float), default=1e-3, metavar="X", help="(%(default)s)")
    training.add_argument(
        "--encoder-learning-rate",
        type=positive(float),
        metavar="X",
        help="with --finetune-encoder: the CNN's own learning rate (that of the rest)",
    )
    training.add_argument(
        "--schedule", choices=SCHEDULES, default="cosine", help="how the learning rate falls (%(default)s)"
    )
    training.add_argument(
        "--warmup",
        type=probability,
        default=0.05,
        metavar="P",
        help="the fraction of all steps in which the learning rate rises to its value; 0: none (%(default)s)",
    )
    training.add_argument(
        "--clip",
        type=non_negative(float),
        default=5.0,
        metavar="X",
        help="largest gradient norm; 0: no limit (%(default)s)",
    )
    training.add_argument(
        "--weight-decay", type=non_negative(float), default=1e-2, metavar="X", help="for matrices only (%(default)s)"
    )
    training.add_argument(
        "--best-by",
        choices=SCORES,
        default="cider",
        help="the best epoch has the highest CIDEr of greedy validation captions, or the lowest validation loss; "
        "without references always the loss (%(default)s)",
    )
    training.add_argument(
        "--patience",
        type=non_negative(int),
        default=0,
        metavar="N",
        help="stop N epochs after the best one; 0: never (%(default)s)",
    )
    training.add_argument(
        "--init", type=path, metavar="FILE", help="begin a new run with the weights of this checkpoint"
    )
    training.add_argument(
        "--self-critical",
        action="store_true",
        help="with --init: raise the CIDEr of sampled captions; use a low --learning-rate",
    )
    training.add_argument(
        "--seed", type=non_negative(int), default=0, help="the start of all random numbers (%(default)s)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda if there is a GPU")
    machine.add_argument(
        "--deterministic", action="store_true", help="on cuda: the same seed gives the same weights; slower"
    )
    machine.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="bf16: with torch.autocast; auto: what is faster on this machine (%(default)s)",
    )
    machine.add_argument(
        "--compile", action="store_true", help="compile the cell first: faster for small models, needs a C++ compiler"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=path, default=Path("cv"), metavar="DIR", help="the folder of the run (%(default)s)"
    )
    output.add_argument(
        "--save-every",
        type=non_negative(int),
        default=0,
        metavar="STEPS",
        help="save a checkpoint after every STEPS steps too",
    )
    output.add_argument(
        "--resume",
        type=name,
        nargs="?",
        const=True,
        metavar="FILE",
        help="continue the run of a checkpoint (OUT/CELL_last.pt)",
    )
    output.add_argument("--dry-run", action="store_true", help="one epoch of at most four batches, to try the settings")
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def test_flags(cell: str | None = None) -> ArgumentParser:
    """Args: cell, of a script that evaluates this cell only."""
    kind = f"checkpoint of the {cell} captioner" if cell else "checkpoint"
    parser = ArgumentParser(description=f"Evaluate a {kind}, or caption your own images.")
    what = parser.add_argument_group("what")
    what.add_argument(
        "--checkpoint",
        type=path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="train_*.py writes it into cv/; several: an ensemble, which averages their probabilities",
    )
    what.add_argument(
        "--image",
        type=name,
        nargs="+",
        metavar="PATH",
        help="caption these images (or folders, or patterns); no data is loaded",
    )
    what.add_argument("--data", type=name, metavar="FILE", help="default: the file named in the checkpoint")
    what.add_argument(
        "--export", type=path, metavar="FILE", help="write the model as .safetensors, to share it, and stop"
    )
    what.add_argument(
        "--export-bits",
        type=int,
        choices=EXPORT_BITS,
        default=32,
        help="with --export: of each weight; fewer make a smaller file (%(default)s)",
    )
    what.add_argument(
        "--calibrate",
        action="store_true",
        help="with --export: measure on the split how sure the model is; --image then says it with every caption",
    )
    what.add_argument(
        "--metrics",
        action="store_true",
        help="compute BLEU, ROUGE-L and CIDEr; write OUT/metrics.json and OUT/results.html",
    )
    what.add_argument(
        "--baselines", action="store_true", help="with --metrics: the scores of trivial captions and of humans"
    )
    what.add_argument("--split", choices=SPLITS, default="val", help="what to evaluate on (%(default)s)")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max-length", type=positive(int), default=15, metavar="N", help="in words (%(default)s)")
    decoding.add_argument(
        "--beam", type=positive(int), metavar="K", help=f"beam width; 1: greedy search, the most probable word ({BEAM})"
    )
    decoding.add_argument(
        "--length-penalty",
        type=finite,
        metavar="X",
        help=f"rank the captions of a beam by log p / length^X ({LENGTH_PENALTY})",
    )
    decoding.add_argument("--temperature", type=positive(float), metavar="X", help="draw words at random instead")
    decoding.add_argument("--top-k", type=positive(int), metavar="K", help="draw from the K most probable words")
    decoding.add_argument(
        "--top-p", type=positive(float), metavar="P", help="draw from the fewest words that together have probability P"
    )
    decoding.add_argument(
        "--seed", type=non_negative(int), default=0, help="the start of the random numbers (%(default)s)"
    )
    decoding.add_argument("--allow-unk", action="store_true", help="captions may contain <UNK>")
    decoding.add_argument(
        "--allow-repeats", action="store_true", help='captions may repeat a word, as in "a bike next to a bike"'
    )
    decoding.add_argument(
        "--allow-bad-endings", action="store_true", help='captions may end with any word, as in "a man in front of a"'
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=path, metavar="DIR", help="the folder for figures (outputs; with --image: none)")
    output.add_argument("--json", action="store_true", help="with --image: print JSON")
    output.add_argument(
        "--results",
        type=path,
        metavar="FILE",
        help="write the captions of the split in COCO's result format (image_id, caption), for an evaluation server",
    )
    output.add_argument(
        "--num-samples",
        type=non_negative(int),
        default=4,
        metavar="N",
        help="images of train and of val to draw (%(default)s)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch-size", type=positive(int), default=256, metavar="N", help="captions (%(default)s)")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda if there is a GPU")
    machine.add_argument(
        "--precision", choices=PRECISIONS, help="default: as it was trained, or fp32 if that is faster here"
    )
    return parser


def build_flags() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rnn_lstm_captioning build",
        description="Make a caption file (.pt) from images and their captions. Files of captions: CSV with the "
        "columns image,caption; COCO JSON; Karpathy's dataset_*.json; Flickr's .token.txt and results.csv.",
    )
    source = parser.add_argument_group("images and captions")
    source.add_argument("--images", type=path, required=True, metavar="DIR", help="the folder of images")
    source.add_argument("--captions", type=path, required=True, metavar="FILE", help="their captions")
    source.add_argument("--val-images", type=path, metavar="DIR", help="validation images, if in another folder")
    source.add_argument("--val-captions", type=path, metavar="FILE", help="validation captions, if in another file")
    splits = parser.add_argument_group("splits (a Karpathy JSON has its own)")
    for split in ("train", "val", "test"):
        splits.add_argument(f"--{split}-list", type=path, metavar="FILE", help="the names of its images, one per line")
    splits.add_argument(
        "--val-fraction", type=float, metavar="X", help="without lists: the fraction of the images for validation (0.1)"
    )
    text = parser.add_argument_group("what is stored")
    text.add_argument("--out", type=path, required=True, metavar="FILE", help="the caption file to write (.pt)")
    text.add_argument("--size", type=int, default=112, help="the stored size: the side of an image in pixels (112)")
    text.add_argument(
        "--word-threshold",
        type=positive(int),
        default=5,
        metavar="N",
        help="keep words that occur at least N times in the training captions (5)",
    )
    text.add_argument(
        "--max-length", type=positive(int), default=15, metavar="N", help="cut captions after N words (15)"
    )
    parser.add_argument(
        "--workers", type=positive(int), default=os.cpu_count(), help="images decoded at the same time (%(default)s)"
    )
    return parser


def check_flags() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rnn_lstm_captioning check",
        description="Check your own functions: which are right, what is wrong, and which known mistake it is.",
    )
    parser.add_argument(
        "file",
        type=path,
        nargs="?",
        metavar="FILE",
        help="a Python file or a notebook with any of the functions; or the folder of a ladder",
    )
    parser.add_argument(
        "--new", action="store_true", help="write FILE.py, with the functions to fill in; or a folder, a ladder of them"
    )
    parser.add_argument("--puzzle", type=positive(int), metavar="N", help="write puzzle_N.py, in which a line is wrong")
    parser.add_argument("--answer", action="store_true", help="with --puzzle N: judge the corrected file")
    grading = parser.add_argument_group("grading")
    grading.add_argument(
        "--need",
        nargs="+",
        default=[],
        metavar="NAME[=POINTS]",
        help="exit code 1 if one is not written (a point each)",
    )
    grading.add_argument("--json", action="store_true", help="print JSON")
    grading.add_argument("--gradescope", type=path, metavar="FILE", help="write Gradescope's results.json")
    parser.add_argument(
        "--timeout",
        type=positive(float),
        default=60,
        metavar="S",
        help="after S seconds, stop the running function (%(default)s)",
    )
    return parser


def inspect_flags() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rnn_lstm_captioning inspect",
        description="Look inside a trained captioner: gates, states, words and attention at every step, "
        "or gradients back in time.",
    )
    parser.add_argument(
        "--checkpoint", type=name, nargs="+", required=True, metavar="FILE", help="several with --gradients or --html"
    )
    parser.add_argument(
        "--image", type=name, nargs="+", metavar="PATH", help="the image to caption; several with --html"
    )
    parser.add_argument("--gradients", action="store_true", help="draw the norm of a gradient on its way back in time")
    parser.add_argument(
        "--html",
        type=path,
        metavar="FILE",
        help="write a page that explains the captions, to open in a browser; without --image, of built-in scenes",
    )
    parser.add_argument("--top", type=positive(int), default=5, metavar="N", help="next words per step (%(default)s)")
    parser.add_argument("--max-length", type=positive(int), default=15, metavar="N", help="in words (%(default)s)")
    parser.add_argument(
        "--steps",
        type=positive(int),
        default=40,
        metavar="T",
        help="steps back in time, with --gradients (%(default)s)",
    )
    parser.add_argument(
        "--out", type=path, default=Path("outputs"), metavar="DIR", help="for the results (%(default)s)"
    )
    return parser


def demo_flags() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rnn_lstm_captioning demo",
        description="A web page to try captioners, on this machine; it needs Gradio "
        "(requirements-demo.txt) and no network.",
    )
    parser.add_argument(
        "--checkpoint",
        type=name,
        nargs="+",
        default=["models/flickr8k.safetensors"],
        metavar="FILE",
        help="the captioners, side by side (the ready model, models/flickr8k.safetensors)",
    )
    parser.add_argument("--examples", type=name, nargs="+", metavar="PATH", help="up to 24 example images (new scenes)")
    parser.add_argument(
        "--host", type=name, default="127.0.0.1", help="0.0.0.0: reachable from other machines (%(default)s)"
    )
    parser.add_argument("--port", type=port_number, help="(the first free port from 7860)")
    parser.add_argument("--device", type=device, help="cpu, cuda, ...; default: cuda if there is a GPU")
    return parser


PARSERS = {
    "train": train_flags,
    "test": test_flags,
    "build": build_flags,
    "check": check_flags,
    "inspect": inspect_flags,
    "demo": demo_flags,
}
