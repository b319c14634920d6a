"""The command lines behind the six scripts: train_*.py and test_*.py."""

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .captioner import CaptioningRNN
from .checkpoint import load_checkpoint, restore_captioner, save_checkpoint
from .command import ArgumentParser, default_device, device, positive, probability
from .data.files import COCO_BYTES, COCO_PATH, SPLITS, download, load_captions
from .data.images import find_images, load_images
from .encoder import ImageEncoder, encode_all
from .errors import InputError
from .storage import cache_folder
from .training import Pairs, Trainer, evaluate, write_log
from .visualize import save_attention, save_captioned_picture, save_loss_curve
from .vocabulary import NULL, decode_captions, tokenize

SCRIPTS = {"rnn": "rnn", "lstm": "lstm", "attn": "lstm_attention"}


# -------------------------------------------------------------------------------------- training


def get_train_parser(cell):
    parser = ArgumentParser(description=f"Train the {cell} captioner. @FILE reads arguments from a file.")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        help="a caption file, or 'scenes'; default: datasets/coco.pt if there, else the scenes",
    )
    data.add_argument("--download", action="store_true", help="fetch the course's coco.pt (378 MB) first")
    data.add_argument("--num-train", type=positive(int), metavar="N", help="use the first N training captions only")
    model = parser.add_argument_group("model")
    model.add_argument("--encoder", default="regnet_x_400mf", metavar="NAME", help="a torchvision CNN (%(default)s)")
    model.add_argument(
        "--encoder-weights", metavar="imagenet|none|FILE", help="default: imagenet; with the scenes: none"
    )
    model.add_argument("--finetune-encoder", action="store_true", help="train the CNN too; slower")
    model.add_argument("--hidden-dim", type=positive(int), default=512, metavar="H", help="(%(default)s)")
    model.add_argument("--wordvec-dim", type=positive(int), default=256, metavar="D", help="(%(default)s)")
    model.add_argument(
        "--dropout", type=probability, default=0.25, metavar="P", help="of words and states (%(default)s)"
    )
    model.add_argument("--feature-dropout", type=probability, default=0.5, metavar="P", help="(%(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive(int), default=60, help="(%(default)s)")
    training.add_argument("--batch-size", type=positive(int), default=256, metavar="N", help="captions (%(default)s)")
    training.add_argument("--optimizer", choices=["adamw", "adam"], default="adamw", help="(%(default)s)")
    training.add_argument("--learning-rate", type=positive(float), default=1e-3, metavar="X", help="(%(default)s)")
    training.add_argument("--schedule", choices=["cosine", "constant"], default="cosine", help="(%(default)s)")
    training.add_argument("--clip", type=float, default=5.0, metavar="X", help="gradient norm; 0: off (%(default)s)")
    training.add_argument("--weight-decay", type=float, default=1e-2, metavar="X", help="(%(default)s)")
    training.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda where there is one")
    machine.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="(%(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("cv"), metavar="DIR", help="(%(default)s)")
    output.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="save inside epochs too")
    output.add_argument(
        "--resume", nargs="?", const=True, metavar="FILE", help="go on from a checkpoint (default: OUT/CELL_last.pt)"
    )
    output.add_argument("--dry-run", action="store_true", help="at most four batches of everything, to try a setup")
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def train_main(cell, arguments=None):
    """Train a captioner of the given cell as the command line says."""
    args = get_train_parser(cell).parse_args(arguments)
    args.device = args.device or default_device()
    torch.manual_seed(args.seed)
    if args.dry_run:
        args.epochs, args.out = 1, args.out / "dry-run"
    data = choose_data(args)
    captioner = make_captioner(cell, data, args)
    train, val = (prepare_pairs(captioner, data, split, args) for split in ("train", "val"))
    standardize_features(captioner, train, encoder_weights(data, args))
    image_size = data.splits["train"].images.shape[-1]

    def save(which, trainer):
        state = trainer.state_dict() if which == "last" else None
        settings = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in vars(args).items()}
        save_checkpoint(args.out / f"{cell}_{which}.pt", captioner, image_size, settings, data.source, state)
        if which == "last" and trainer.history:
            write_log(args.out / f"{cell}_log.csv", trainer.history)
            save_loss_curve(args.out / f"{cell}_loss.png", trainer.history, f"{cell}, {data.source}")
            if trainer.step == trainer.history[-1]["step"]:
                print_epoch(trainer.history[-1], args.epochs)

    trainer = Trainer(captioner, train, val, args, save, autocast=autocast(args.device, args.precision))
    if args.resume:
        resume(trainer, args.out / f"{cell}_last.pt" if args.resume is True else Path(args.resume), cell, data)
    if not trainer.run():
        print(f"saved: {args.out / cell}_last.pt after step {trainer.step}; the same command with --resume goes on")
        raise KeyboardInterrupt
    print(f"best: {args.out / cell}_best.pt, {trainer.best:.3f} nats per word")
    print(f"next: python test_{SCRIPTS[cell]}.py --checkpoint {args.out / cell}_best.pt --image PHOTO")


def choose_data(args):
    """Load the data that the arguments name, or the best that is there, and say which."""
    if args.download and args.data:
        raise InputError(f"--download fetches {COCO_PATH} and trains on it; leave out --data {args.data}")
    if args.download:
        with tqdm(total=COCO_BYTES, unit="B", unit_scale=True, desc="coco.pt", disable=args.quiet) as bar:
            download(progress=bar.update)
    source = args.data or (str(COCO_PATH) if COCO_PATH.exists() else "scenes")
    hint = "; --download fetches coco.pt, --data FILE takes your own" if source == "scenes" and not args.data else ""
    print(f"data: {'the built-in scenes' if source == 'scenes' else source}{hint}", flush=True)
    return load_captions(source)


def make_captioner(cell, data, args):
    """The captioner that the arguments describe, on its device."""
    weights = encoder_weights(data, args)
    encoder = ImageEncoder(
        pretrained=weights == "imagenet",
        verbose=not args.quiet,
        name=args.encoder,
        weights_file=None if weights in ("imagenet", "none") else weights,
        frozen=not args.finetune_encoder,
    )
    captioner = CaptioningRNN(
        data.token_to_idx,
        wordvec_dim=args.wordvec_dim,
        hidden_dim=args.hidden_dim,
        cell_type=cell,
        ignore_index=NULL,
        image_encoder=encoder,
        dropout=args.dropout,
        feature_dropout=args.feature_dropout,
    ).to(args.device)
    trained = sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    print(
        f"model: {cell}, {args.encoder} (weights: {weights}; {'trained too' if args.finetune_encoder else 'frozen'}), "
        f"{len(data.idx_to_token)} words, {trained:,} parameters to train",
        flush=True,
    )
    return captioner


def encoder_weights(data, args):
    """imagenet, none, or a file's path."""
    return args.encoder_weights or ("none" if data.source == "scenes" else "imagenet")


def prepare_pairs(captioner, data, name, args):
    """A split ready to train on: with cached features, or with its images if the encoder learns too."""
    split = data.splits[name].first(args.num_train if name == "train" else None)
    if args.dry_run:
        split = split.first(4 * args.batch_size)
    inputs = split.images
    if not args.finetune_encoder:
        beside = Path(data.source).parent
        if args.dry_run:
            folder = args.out
        elif data.source == "scenes" or not os.access(beside, os.W_OK):
            folder = cache_folder()
        else:
            folder = beside
        progress = partial(tqdm, desc=f"{name} features", unit="batch", disable=args.quiet, leave=False)
        stem = folder / f"{Path(data.source).name}.{name}"
        inputs = encode_all(captioner.image_encoder, inputs, stem, args.device, args.precision, progress=progress)
        if captioner.cell_type != "attn":  # the grid is not needed again: pool once, not in every batch
            inputs = torch.cat(
                [captioner.seen_by_cell(part.to(args.device)).half().cpu() for part in inputs.split(1024)]
            )
    return Pairs(inputs, split.captions, split.image_index)


def standardize_features(captioner, train, weights):
    """Take the features' mean and variance from the training split.

    Not those of a random CNN that is about to learn: its own BatchNorm keeps its features in range.
    """
    if train.inputs.dtype != torch.uint8:
        captioner.standardize(train.inputs)
    elif weights != "none":
        with torch.no_grad():
            images = train.inputs[:: 1 + len(train.inputs) // 256]
            captioner.standardize(captioner.eval().encode(images.to(captioner.feature_mean.device)))


def resume(trainer, path, cell, data):
    checkpoint = load_checkpoint(path)
    if checkpoint["cell"] != cell or checkpoint["idx_to_token"] != data.idx_to_token:
        raise InputError(f"{path} was trained with another cell or vocabulary; it can't be resumed here")
    if checkpoint["training"] is None:
        raise InputError(f"{path} holds no training state; resume from {cell}_last.pt")
    try:
        trainer.captioner.load_state_dict(checkpoint["model"])
        trainer.load_state_dict(checkpoint["training"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} does not fit these settings ({error})") from error


def print_epoch(row, epochs):
    print(
        f"epoch {row['epoch']}/{epochs}: train {row['train_loss']:.3f}, val {row['val_loss']:.3f} nats per caption; "
        f"val {row['val_loss_per_word']:.3f} nats per word, perplexity {row['val_perplexity']:.2f}; "
        f"{row['captions_per_second']:.0f} captions/s, {row['seconds']:.0f} s",
        flush=True,
    )


# ------------------------------------------------------------------------------------ evaluation


def get_test_parser(cell):
    parser = ArgumentParser(description=f"Evaluate a checkpoint of the {cell} captioner, or caption your own pictures.")
    what = parser.add_argument_group("what")
    what.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="written by train_*.py into cv/")
    what.add_argument("--image", nargs="+", metavar="PATH", help="caption these pictures or folders; no data is loaded")
    what.add_argument("--data", metavar="FILE", help="default: the file named in the checkpoint")
    what.add_argument("--split", choices=SPLITS, default="val", help="for loss and perplexity (%(default)s)")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max-length", type=positive(int), default=15, metavar="N", help="words (%(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="where the PNGs go (outputs; with --image: none)")
    output.add_argument(
        "--num-samples", type=int, default=4, metavar="N", help="pictures of train and val to draw (%(default)s)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch-size", type=positive(int), default=256, metavar="N", help="(%(default)s)")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda where there is one")
    return parser


def test_main(cell, arguments=None):
    """Evaluate a checkpoint, or caption pictures with it, as the command line says."""
    args = get_test_parser(cell).parse_args(arguments)
    args.device = args.device or default_device()
    checkpoint = load_checkpoint(args.checkpoint)
    if checkpoint["cell"] != cell:
        raise InputError(
            f"{args.checkpoint} holds the {checkpoint['cell']} captioner: "
            f"use python test_{SCRIPTS[checkpoint['cell']]}.py --checkpoint {args.checkpoint}"
        )
    captioner = restore_captioner(checkpoint, args.checkpoint).to(args.device)
    if args.image:
        caption_files(captioner, checkpoint["image_size"], args)
    else:
        evaluate_data(captioner, checkpoint, args)


def caption_files(captioner, image_size, args):
    """Caption the user's own pictures: one line each; what can't be read is named, the rest is done."""
    paths = find_images(args.image)
    if not paths:
        raise InputError(f"there are no pictures in {', '.join(args.image)}")
    done = 0
    for start in range(0, len(paths), 64):
        images, loaded, failed = load_images(paths[start : start + 64], image_size)
        for path, reason in failed:
            print(f"{path}: {reason}", file=sys.stderr)
        if loaded:
            for path, image, (caption, weights) in zip(loaded, images, caption_images(captioner, images, args)):
                print(f"{path}: {caption}", flush=True)
                if args.out:
                    draw(args.out / f"{path.stem}_{done}", image, caption, [], weights)
                done += 1
    if not done:
        raise InputError("none of the pictures could be read")


def evaluate_data(captioner, checkpoint, args):
    """Loss and perplexity on a split; sample pictures of train and val with their captions."""
    data = load_captions(args.data or checkpoint["data"])
    if data.idx_to_token != captioner.idx_to_word:
        raise InputError(
            f"{data.source} has another vocabulary than {args.checkpoint}, which was trained on {checkpoint['data']}"
        )
    if args.split not in data.splits:
        raise InputError(f"{data.source} has no {args.split} split; it has {', '.join(data.splits)}")
    split = data.splits[args.split]
    if split.images.shape[-1] != checkpoint["image_size"]:
        raise InputError(
            f"{data.source} has pictures of {split.images.shape[-1]} pixels, "
            f"{args.checkpoint} was trained on {checkpoint['image_size']}"
        )
    pairs = Pairs(split.images, split.captions, split.image_index)
    per_caption, per_word = evaluate(captioner, pairs, args.batch_size, args.device, contextlib.nullcontext)
    perplexity = torch.tensor(per_word).exp().item()
    print(
        f"{args.split}: {len(split)} captions of {len(split.images)} pictures; loss {per_caption:.3f} nats per "
        f"caption, {per_word:.3f} nats per word, perplexity {perplexity:.2f} per word"
    )
    if split.references:
        captions = caption_images(captioner, split.images, args)
        right = sum(
            caption in [" ".join(tokenize(text)) for text in references]
            for (caption, _), references in zip(captions, split.references)
        )
        print(f"{args.split}: {right / len(captions):.1%} of the captions are word for word one of their references")
    out = args.out or Path("outputs")
    for name in ("train", "val"):
        draw_samples(captioner, data.splits[name], name, out, args)
    print(f"pictures: {out}")


def draw_samples(captioner, split, name, out, args):
    """Pictures spread evenly over a split, with generated and true captions."""
    chosen = torch.linspace(0, len(split.images) - 1, min(args.num_samples, len(split.images))).long()
    if not len(chosen):
        return
    captioned = caption_images(captioner, split.images[chosen], args)
    for k, (index, (caption, weights)) in enumerate(zip(chosen.tolist(), captioned)):
        rows = split.captions[split.image_index == index]
        references = split.references[index] if split.references else decode_captions(rows, captioner.idx_to_word)
        print(f"{name} {index}: {caption}  (true: {references[0] if references else 'none'})")
        draw(out / f"{name}_{k}", split.images[index], caption, references, weights)


def caption_images(captioner, images, args):
    """For each image its caption, and where an attention captioner looked at each of its words."""
    captioned = []
    for batch in images.split(64):
        result = captioner.sample(batch.to(args.device), args.max_length)
        captions, weights = result if isinstance(result, tuple) else (result, [None] * len(batch))
        captioned += zip(decode_captions(captions, captioner.idx_to_word), weights)
    return captioned


def draw(stem, image, caption, references, weights):
    save_captioned_picture(f"{stem}.png", image, caption, references)
    if weights is not None:
        save_attention(stem, image, caption.split(), weights)


def autocast(device, precision):
    """A function that returns the context in which a loss is computed at a precision."""
    return partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
