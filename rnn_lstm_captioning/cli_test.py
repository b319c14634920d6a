"""The command line behind test_rnn.py, test_lstm.py and test_lstm_attention.py."""

import json
import math
import sys
from pathlib import Path

import torch

from .checkpoint import export_safetensors, load_checkpoint, restore_captioner
from .command import SCRIPTS, ArgumentParser, device, non_negative, positive
from .data.files import SPLITS, load_captions
from .data.images import find_images, load_images
from .errors import InputError, RunFailed
from .inference import PictureCaptioner, default_device
from .metrics import (
    METRICS,
    can_score,
    diversity,
    human_against_others,
    nearest_captions,
    score_captions,
    single_best_caption,
)
from .pairs import evaluate
from .preparation import autocast, known_words, pool, prepare_pairs, references_of
from .report import save_results_page
from .storage import replacing
from .visualize import save_attention, save_captioned_picture
from .vocabulary import decode_captions, tokenize


def get_test_parser(cell):
    parser = ArgumentParser(description=f"Evaluate a checkpoint of the {cell} captioner, or caption your own pictures.")
    what = parser.add_argument_group("what")
    what.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="written by train_*.py into cv/")
    what.add_argument(
        "--image", nargs="+", metavar="PATH", help="caption these pictures, folders or patterns; no data is loaded"
    )
    what.add_argument("--data", metavar="FILE", help="default: the file named in the checkpoint")
    what.add_argument(
        "--export", type=Path, metavar="FILE", help="write the model as .safetensors, to share it, and leave"
    )
    what.add_argument(
        "--metrics",
        action="store_true",
        help="BLEU, ROUGE-L and CIDEr, and OUT/metrics.json and results.html",
    )
    what.add_argument(
        "--baselines", action="store_true", help="with --metrics: what trivial captions and humans would score"
    )
    what.add_argument("--split", choices=SPLITS, default="val", help="what to evaluate on (%(default)s)")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max-length", type=positive(int), default=15, metavar="N", help="words (%(default)s)")
    decoding.add_argument("--beam", type=positive(int), default=1, metavar="K", help="beam search (1: greedy)")
    decoding.add_argument(
        "--length-penalty", type=float, default=0.0, metavar="X", help="rank by log p / length^X (%(default)s)"
    )
    decoding.add_argument("--temperature", type=positive(float), metavar="X", help="draw words at random instead")
    decoding.add_argument("--top-k", type=positive(int), metavar="K", help="draw from the K most probable words")
    decoding.add_argument("--top-p", type=positive(float), metavar="P", help="nucleus sampling")
    decoding.add_argument("--seed", type=non_negative(int), default=0, help="of the draws (%(default)s)")
    decoding.add_argument("--allow-unk", action="store_true", help="let the captions hold <UNK>")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="where the PNGs go (outputs; with --image: none)")
    output.add_argument("--json", action="store_true", help="with --image: print JSON")
    output.add_argument(
        "--num-samples",
        type=non_negative(int),
        default=4,
        metavar="N",
        help="pictures of train and val to draw (%(default)s)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch-size", type=positive(int), default=256, metavar="N", help="(%(default)s)")
    machine.add_argument("--device", type=device, default=None, help="cpu, cuda, ...; default: cuda where there is one")
    machine.add_argument("--precision", choices=["fp32", "bf16"], help="default: as it was trained")
    return parser


def test_main(cell, arguments=None):
    """Evaluate a checkpoint, or caption pictures with it, as the command line says."""
    args = get_test_parser(cell).parse_args(arguments)
    args.device = args.device or default_device()
    decoding = decoding_settings(args)  # mistakes show before anything is computed
    checkpoint = load_checkpoint(args.checkpoint)
    if checkpoint["cell"] != cell:
        raise InputError(
            f"{args.checkpoint} holds the {checkpoint['cell']} captioner: "
            f"use python test_{SCRIPTS[checkpoint['cell']]}.py --checkpoint {args.checkpoint}"
        )
    captioner = PictureCaptioner(
        restore_captioner(checkpoint, args.checkpoint), checkpoint["image_size"], device=args.device
    )
    args.precision = args.precision or checkpoint["settings"].get("precision", "fp32")
    args.metrics = args.metrics or args.baselines
    if args.export:
        if args.export.suffix != ".safetensors":
            raise InputError(f"--export {args.export}: the name of the file must end in .safetensors")
        export_safetensors(checkpoint, args.export)
        print(f"wrote {args.export}; it can stand wherever a --checkpoint or --init does")
    elif args.image and args.metrics:
        raise InputError("--metrics and --baselines are for a data set, --image for your own pictures: use one")
    elif args.image:
        caption_files(captioner, args, decoding)
    else:
        evaluate_data(captioner, checkpoint, args, decoding)


def decoding_settings(args):
    """The keywords of ``decode`` that the command line gives."""
    if args.top_p is not None and args.top_p > 1:
        raise InputError(f"--top-p {args.top_p} is above 1")
    sampling = (args.temperature, args.top_k, args.top_p) != (None, None, None)
    if sampling and args.beam > 1:
        raise InputError("--beam looks for probable captions, --temperature, --top-k and --top-p draw them: use one")
    return {
        "max_length": args.max_length,
        "beam": args.beam,
        "length_penalty": args.length_penalty,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "generator": torch.Generator(args.device).manual_seed(args.seed) if sampling else None,
        "allow_unk": args.allow_unk,
    }


# ---------------------------------------------------------------------------- the user's pictures


def caption_files(captioner, args, decoding):
    """Caption the user's own pictures: one line each; what can't be read is named, the rest is done."""
    paths = find_images(args.image)
    if not paths:
        raise InputError(f"there are no pictures in {', '.join(args.image)}")
    results, done = [], 0
    for start in range(0, len(paths), 64):
        images, loaded, failed = load_images(paths[start : start + 64], captioner.stored_size)
        for path, reason in failed:
            print(f"{path}: {reason}", file=sys.stderr)
            results.append({"image": str(path), "error": reason})
        for path, image, caption in zip(loaded, images, captioner.caption_images(images, **decoding)):
            if args.out:
                draw(args.out / f"{path.stem}_{done}", image, caption, [])
            done += 1
            results.append({"image": str(path), "caption": caption.text, "log_prob": round(caption.log_prob, 4)})
            if not args.json:
                print(f"{path}: {caption.text}", flush=True)
    if not done:
        raise InputError("none of the pictures could be read")
    if args.out:
        print(f"pictures: {args.out}", file=sys.stderr)  # the output has one line for each picture
    if args.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if done < len(paths):
        raise RunFailed(f"{len(paths) - done} of {len(paths)} pictures could not be read; the others are captioned")


# ------------------------------------------------------------------------------------ a data set


def evaluate_data(captioner, checkpoint, args, decoding):
    """Loss and perplexity on a split; sample pictures of train and val with their captions."""
    data = load_captions(args.data or checkpoint["data"])
    check_fit(captioner, data, checkpoint, args)
    split, out = data.splits[args.split], args.out or Path("outputs")
    out.mkdir(parents=True, exist_ok=True)
    references = references_of(split, data) if split.references or args.metrics else None
    if args.metrics and not can_score(references):
        raise InputError(f"{data.source}: the {args.split} split has too few references to score captions against")
    pairs = prepare_pairs(captioner.model, data, args.split, device=args.device, precision=args.precision)
    per_caption, per_word = evaluate(
        captioner.model, pairs, args.batch_size, args.device, autocast(args.device, args.precision)
    )
    print(
        f"{args.split}: {len(split)} captions of {len(split.images)} pictures; loss {per_caption:.3f} nats per "
        f"caption, {per_word:.3f} nats per word, perplexity {math.exp(min(per_word, 99)):.2f} per word"
    )
    if references:
        captions = captioner.caption_features(pairs.features, args.batch_size, **decoding)
        right = sum(caption.tokens in map(tokenize, texts) for caption, texts in zip(captions, references))
        print(f"{args.split}: {right / len(captions):.1%} of the captions are word for word one of their references")
        if args.metrics:
            print_metrics(captioner, data, pairs, captions, references, out, args)
    for name in ("train", "val"):
        draw_samples(captioner, data.splits[name], name, out, args.num_samples, decoding)
    print(f"pictures: {out}")


def print_metrics(captioner, data, pairs, captions, references, out, args):
    """Scores of a split's captions, beside what they have to be compared with; and the same as JSON."""
    split = data.splits[args.split]
    texts = [caption.text for caption in captions]
    scores, per_image = score_captions(texts, references)
    rows = {"the model": scores}
    if args.baselines:
        rows |= baselines(captioner, data, pairs, references, args)
    counts = [len(of_image) for of_image in references]
    settings = {k: getattr(args, k) for k in ("max_length", "beam", "length_penalty", "temperature", "top_k", "top_p")}
    settings = {name: value for name, value in settings.items() if value is not None}
    known = "" if split.references else ", cut and without the words that the vocabulary does not know"
    decoded = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(
        f"{args.split}: {len(texts)} images, {min(counts)} to {max(counts)} references each{known}; decoding: {decoded}"
    )
    if max(counts) == 1:
        print("one reference per image: these scores are far below those that are usual with five")
    print(f"{'in percent':<44}" + "".join(f"{name:>9}" for name in METRICS))
    for name, row in rows.items():
        print(f"{name:<44}" + "".join(f"{row[metric]:9.1f}" for metric in METRICS))
    varied = diversity(texts)
    print(f"{varied['distinct']:.1%} of the captions are distinct, with {varied['words_used']} different words")
    images = [
        {"image": split.image_names[i] if split.image_names else i, "caption": texts[i]}
        | {"log_prob": captions[i].log_prob, "references": references[i]}
        | {metric: per_image[metric][i] for metric in METRICS}
        for i in range(len(texts))
    ]
    result = {"data": data.source, "split": args.split, "checkpoint": str(args.checkpoint), "decoding": settings}
    result |= {"scores": rows, "diversity": varied, "images": images}
    with replacing(out / "metrics.json") as unfinished:
        unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    title = f"{args.checkpoint} on {data.source}, {args.split}"
    save_results_page(out / "results.html", title, decoded, rows, split.images, captions, references, per_image)
    print(f"scores per image: {out / 'metrics.json'}; best, median and worst captions: {out / 'results.html'}")


def baselines(captioner, data, pairs, references, args):
    """What captions would score that need no model of language, or no model at all: a dict of rows."""
    train = prepare_pairs(captioner.model, data, "train", device=args.device, precision=args.precision)
    texts = known_words(train.captions, data)
    rows, count = {}, len(references)
    best = single_best_caption(texts, references)
    print(f"the single best caption: {best}")
    rows["the single best caption for every image"] = score_captions([best] * count, references)[0]
    first = {image: text for image, text in zip(reversed(train.image_index.tolist()), reversed(texts))}
    described = torch.tensor(sorted(first))

    def look(features):  # pooled, each channel with mean 0 and variance 1
        return (pool(features).flatten(1) - mean) / std

    mean, std = captioner.model.feature_mean.flatten().cpu(), captioner.model.feature_std.flatten().cpu()
    near = nearest_captions(
        look(pairs.features), look(train.features)[described], [first[i] for i in described.tolist()]
    )
    rows["the nearest training image's caption"] = score_captions(near, references)[0]
    human, others = human_against_others(references)
    if len(human) > 1:
        rows["a human's caption, against the others'"] = score_captions(human, others)[0]
    return rows


def check_fit(captioner, data, checkpoint, args):
    """Raises InputError if the data is of another kind than the checkpoint was trained on."""
    if data.idx_to_token != captioner.model.idx_to_word:
        raise InputError(
            f"{data.source} has another vocabulary than {args.checkpoint}, which was trained on {checkpoint['data']}"
        )
    if args.split not in data.splits:
        raise InputError(f"{data.source} has no {args.split} split; it has {', '.join(data.splits)}")
    size = data.splits[args.split].images.shape[-1]
    if size != captioner.stored_size:
        raise InputError(
            f"{data.source} has pictures of {size} pixels, {args.checkpoint} was trained on {captioner.stored_size}"
        )


def draw_samples(captioner, split, name, out, count, decoding):
    """Pictures spread evenly over a split, with generated and true captions."""
    chosen = torch.linspace(0, len(split.images) - 1, min(count, len(split.images))).long()
    captions = captioner.caption_images(split.images[chosen], **decoding)
    for k, (index, caption) in enumerate(zip(chosen.tolist(), captions)):
        rows = split.captions[split.image_index == index]
        references = split.references[index] if split.references else decode_captions(rows, captioner.model.idx_to_word)
        print(f"{name} {index}: {caption.text}  (true: {references[0] if references else 'none'})")
        draw(out / f"{name}_{k}", split.images[index], caption, references)


def draw(stem, image, caption, references):
    save_captioned_picture(f"{stem}.png", image, caption.text, references)
    if caption.attention is not None:
        save_attention(stem, image, caption.tokens, caption.attention)
