"""The command line behind train_rnn.py, train_lstm.py and train_lstm_attention.py."""

import os
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from . import distributed
from .captioner import IMAGE_INPUTS, IMAGE_NORMS, CaptioningRNN
from .command import SCRIPTS, ArgumentParser, device, non_negative, positive, probability
from .data.files import COCO_BYTES, COCO_PATH, download, load_captions
from .encoder import ImageEncoder
from .errors import InputError, RunFailed
from .inference import PictureCaptioner, default_device
from .metrics import can_score, cider
from .outputs import Outputs
from .pairs import BATCHINGS
from .preparation import autocast, prepare_pairs, references_of, standardize_features
from .resuming import check_settings, find_start, load_weights, resume
from .self_critical import SelfCritical
from .training import Trainer
from .vocabulary import NULL


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
    model.add_argument("--image-size", type=positive(int), metavar="PIXELS", help="resize pictures (the file's size)")
    model.add_argument(
        "--augment", action="store_true", help="random crops and mirroring; the CNN runs in every step then"
    )
    if cell != "attn":
        model.add_argument(
            "--image-input", choices=IMAGE_INPUTS, default="h0", help="how the cell hears of the image (%(default)s)"
        )
        model.add_argument(
            "--image-norm", choices=IMAGE_NORMS, default="none", help="of the projected image (%(default)s)"
        )
    model.add_argument("--hidden-dim", type=positive(int), default=512, metavar="H", help="(%(default)s)")
    model.add_argument("--wordvec-dim", type=positive(int), default=256, metavar="D", help="(%(default)s)")
    model.add_argument(
        "--dropout", type=probability, default=0.25, metavar="P", help="of words and states (%(default)s)"
    )
    model.add_argument("--feature-dropout", type=probability, default=0.5, metavar="P", help="(%(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive(int), default=60, help="(%(default)s)")
    training.add_argument("--batch-size", type=positive(int), default=256, metavar="N", help="captions (%(default)s)")
    training.add_argument(
        "--batching", choices=BATCHINGS, default="padded", help="length: captions of one length only (%(default)s)"
    )
    training.add_argument("--optimizer", choices=["adamw", "adam"], default="adamw", help="(%(default)s)")
    training.add_argument("--learning-rate", type=positive(float), default=1e-3, metavar="X", help="(%(default)s)")
    training.add_argument("--schedule", choices=["cosine", "constant"], default="cosine", help="(%(default)s)")
    training.add_argument(
        "--clip", type=non_negative(float), default=5.0, metavar="X", help="gradient norm; 0: off (%(default)s)"
    )
    training.add_argument("--weight-decay", type=non_negative(float), default=1e-2, metavar="X", help="(%(default)s)")
    training.add_argument(
        "--patience",
        type=non_negative(int),
        default=0,
        metavar="N",
        help="stop N epochs after the best one; 0: never (%(default)s)",
    )
    training.add_argument("--init", metavar="FILE", help="start from the weights of this checkpoint")
    training.add_argument(
        "--self-critical",
        action="store_true",
        help="with --init: raise the CIDEr of drawn captions; needs a low --learning-rate",
    )
    training.add_argument("--seed", type=non_negative(int), default=0, help="(%(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda where there is one")
    machine.add_argument("--deterministic", action="store_true", help="on cuda: same seed, same bytes; slower")
    machine.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="(%(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("cv"), metavar="DIR", help="(%(default)s)")
    output.add_argument(
        "--save-every", type=non_negative(int), default=0, metavar="STEPS", help="save inside epochs too"
    )
    output.add_argument(
        "--resume", nargs="?", const=True, metavar="FILE", help="go on from a checkpoint (default: OUT/CELL_last.pt)"
    )
    output.add_argument("--dry-run", action="store_true", help="at most four batches of everything, to try a setup")
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def train_main(cell, arguments=None):
    """Train a captioner of the given cell as the command line says."""
    args = get_train_parser(cell).parse_args(arguments)
    if args.self_critical and not (args.init or args.resume):
        raise InputError("--self-critical makes a trained captioner better: name its checkpoint with --init")
    if args.self_critical and args.batching == "length":
        raise InputError("--self-critical compares captions of one picture, which --batching length parts")
    if args.deterministic:  # on a CPU, everything is
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with distributed.joined(args.device or default_device()) as args.device:
        train_here(cell, args)


def train_here(cell, args):
    """Train a captioner in this process, one of those that train together."""
    torch.manual_seed(args.seed)
    args.quiet = args.quiet or distributed.rank() > 0
    if args.dry_run:
        args.epochs, args.out = 1, args.out / "dry-run"
    args.out.mkdir(parents=True, exist_ok=True)  # a mistake in it should show before hours of training
    if not os.access(args.out, os.W_OK):
        raise InputError(f"--out {args.out} can't be written to")
    data = choose_data(args)
    outputs = Outputs(cell, data, args)
    path, checkpoint, resumed = distributed.from_first(lambda: find_start(outputs.last, args))
    captioner = make_captioner(cell, data, args, checkpoint)
    if resumed:
        check_settings(checkpoint, path, args, outputs.stored_size)
    if checkpoint:
        load_weights(checkpoint, path, captioner)
    train, val = make_pairs(captioner, data, args, fresh=checkpoint is None)
    references = data.splits["val"].references
    score = partial(validation_cider, captioner, val, references, args) if can_score(references) else None
    precision, objective = autocast(args.device, args.precision), make_objective(train, data, args)
    trainer = Trainer(captioner, train, val, args, outputs.save, precision, score, objective)
    distributed.seed_apart(args.seed)
    if resumed:
        resume(trainer, checkpoint, path)
        outputs.go_on(trainer, path)
    else:
        outputs.keep_those_before()
    run(trainer, outputs, cell)


def run(trainer, outputs, cell):
    """Train to the end, and say what to do next. Raises: RunFailed or KeyboardInterrupt if it ends before."""
    last, best = outputs.last, outputs.best
    try:
        finished = trainer.run()
    except (RunFailed, OSError) as error:  # the same steps again would fail again, but a full disk can be mended
        start = best if best.exists() else last
        remedy = f"--init {start} begins another run" if isinstance(error, RunFailed) else "--resume goes on"
        rest = f"{last} is as it was last saved: {remedy}" if outputs.saved else "nothing was saved"
        raise RunFailed(f"{error}; {rest}") from error
    if not finished:
        distributed.say(f"saved: {last} after step {trainer.step}; the same command with --resume goes on")
        raise KeyboardInterrupt
    score_text = f", CIDEr {trainer.best['val_cider']:.1f}" if "val_cider" in trainer.best else ""
    distributed.say(
        f"best: {best}, of epoch {trainer.best['epoch']}: "
        f"{trainer.best['val_loss_per_word']:.3f} nats per word{score_text}"
    )
    distributed.say(f"next: python test_{SCRIPTS[cell]}.py --checkpoint {best} --image PHOTO")


def choose_data(args):
    """Load the data that the arguments name, or the best that is there, and say which."""
    if args.download and args.data:
        raise InputError(f"--download fetches {COCO_PATH} and trains on it; leave out --data {args.data}")
    if args.download and distributed.count() > 1:
        raise InputError("--download is for one process: run the script once without torchrun, it may be a --dry-run")
    if args.download:
        with tqdm(total=COCO_BYTES, unit="B", unit_scale=True, desc="coco.pt", disable=args.quiet) as bar:
            download(progress=bar.update)
    source = args.data or distributed.from_first(lambda: str(COCO_PATH) if COCO_PATH.exists() else "scenes")
    hint = "; --download fetches coco.pt, --data FILE takes your own" if source == "scenes" and not args.data else ""
    distributed.say(f"data: {'the built-in scenes' if source == 'scenes' else source}{hint}")
    data = load_captions(source)
    train = data.splits["train"]
    shapes = tuple(train.images.shape), tuple(train.captions.shape)
    summary = (data.idx_to_token, shapes, train.captions.sum().item())
    if any(other != summary for other in distributed.gather(summary)):
        raise InputError(f"{source} is not the same file on all machines")
    if args.dry_run:
        data.splits = {name: split.first(4 * args.batch_size) for name, split in data.splits.items()}
    return data


def make_captioner(cell, data, args, checkpoint=None):
    """The captioner that the arguments describe, on its device; its weights may come from a checkpoint later."""
    weights = "none" if checkpoint else encoder_weights(data, args)
    stored_size = data.splits["train"].images.shape[-1]
    if args.augment:  # the classic recipe takes squares of 224 pixels out of pictures of 256
        args.image_size = args.image_size or stored_size * 7 // 8
        if args.image_size > stored_size:
            raise InputError(f"--augment can't crop {args.image_size} pixels from pictures of {stored_size}")
    encoder = ImageEncoder(
        pretrained=weights == "imagenet",
        verbose=not args.quiet,
        name=args.encoder,
        weights_file=None if weights in ("imagenet", "none") else weights,
        frozen=not args.finetune_encoder,
        image_size=args.image_size,
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
        **({} if cell == "attn" else {"image_input": args.image_input, "image_norm": args.image_norm}),
    ).to(args.device)
    trained = sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    use = f"weights: {'checkpoint' if checkpoint else weights}; {'trained too' if args.finetune_encoder else 'frozen'}"
    distributed.say(
        f"model: {cell}, {args.encoder} ({use}), {len(data.idx_to_token)} words, {trained:,} parameters to train"
    )
    return captioner


def encoder_weights(data, args):
    """imagenet, none, or a file's path."""
    return args.encoder_weights or ("none" if data.source == "scenes" else "imagenet")


def make_pairs(captioner, data, args, fresh=True):
    """The training and validation pairs; a fresh captioner is standardised on the first."""
    common = {"device": args.device, "precision": args.precision, "quiet": args.quiet}
    common |= {"cache": args.out if args.dry_run else None}
    in_loop = args.finetune_encoder or args.augment
    if fresh and encoder_weights(data, args) == "none" and not args.finetune_encoder:
        images = data.splits["train"].images
        captioner.image_encoder.calibrate(images[:: 1 + len(images) // 64].to(args.device))
    distributed.take_from_first(captioner)  # machines may differ in the last bit
    train = prepare_pairs(
        captioner, data, "train", in_loop, args.augment, args.self_critical, first=args.num_train, **common
    )
    val = prepare_pairs(captioner, data, "val", args.finetune_encoder, **common)
    if fresh:
        standardize_features(captioner, train, encoder_weights(data, args))
    return train, val


def make_objective(train, data, args):
    """What is minimised: None for the loss of the training captions."""
    if not args.self_critical:
        return None
    references = references_of(data.splits["train"], data)
    if not can_score(references):
        raise InputError(f"{data.source} has training pictures without a caption to score drawn ones against")
    if train.image_index.bincount().max() < 2:
        raise InputError(f"--self-critical draws as many captions as a picture has, and {data.source} has one of each")
    return SelfCritical(train, references)


def validation_cider(captioner, val, references, args):
    """CIDEr of the greedy captions of the validation images, in percent; each process captions its share."""
    inference, precision = PictureCaptioner(captioner, None, args.device), autocast(args.device, args.precision)
    with precision():
        if val.features is not None:
            captions = inference.caption_features(distributed.share(val.features), args.batch_size)
        else:
            captions = inference.caption_images(distributed.share(val.images))
    texts = [text for part in distributed.gather([caption.text for caption in captions]) for text in part]
    return distributed.from_first(lambda: cider(texts, references))
