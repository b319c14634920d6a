"""Evaluate a checkpoint, or caption your own images: test_rnn.py, test_lstm.py, test_lstm_attention.py, and the command
test for every cell."""

import json
import math
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..data.caption_file import CaptionData, Split, load_captions
from ..data.images import find_images, load_images
from ..data.vocabulary import decode_captions, tokenize
from ..errors import InputError, RunFailed
from ..evaluation.captions import Caption, ImageCaptioner, default_device
from ..evaluation.confidence import Confidence, measure_confidence, restore_confidence
from ..evaluation.figures import save_attention, save_captioned_image
from ..evaluation.metrics import (
    METRICS,
    can_score,
    diversity,
    human_against_others,
    nearest_captions,
    retrieval,
    score_captions,
    single_best_caption,
)
from ..evaluation.results_page import Scored, save_results_page
from ..files import protecting, same_file
from ..model.captioner import CaptioningRNN
from ..model.checkpoint import Checkpoint, export_safetensors, load_checkpoint, restore_captioner
from ..model.decoding import Decoding
from ..model.ensemble import Ensemble
from ..storage import write_text
from ..training.batches import Pairs
from ..training.features import FeaturePass, known_words, pool, prepare_pairs, references_of
from ..training.precision import SMALL, choose_precision
from ..training.trainer import evaluate
from .common import say, script_for, warn
from .flags import test_flags

RETRIEVED = 100  # captions and images, for self-retrieval


def main(arguments: Sequence[str] | None = None, cell: str | None = None) -> None:
    """Evaluate a checkpoint, or caption images, as the command line says. Args: cell, of a script for one cell."""
    args = test_flags(cell).parse_args(arguments)
    decoding = Decoding.recommended(
        max_length=args.max_length,
        beam=args.beam,
        length_penalty=args.length_penalty,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        allow_unk=args.allow_unk,
        no_repeats=not args.allow_repeats,
        no_bad_endings=not args.allow_bad_endings,
    )  # wrong values are refused before anything is computed
    if not args.export and (args.calibrate or args.export_bits != 32):
        raise InputError("--calibrate and --export-bits belong to --export FILE: add it, or leave them out")
    paths, checkpoints = args.checkpoint, [load_checkpoint(path) for path in args.checkpoint]
    for path, checkpoint in zip(paths, checkpoints):
        if cell not in (None, checkpoint.cell):
            raise InputError(
                f"{path} holds the {checkpoint.cell} captioner: "
                f"use {script_for('test', checkpoint.cell)} --checkpoint {path}"
            )
        if checkpoint.stored_size != checkpoints[0].stored_size:
            sizes = f"{checkpoints[0].stored_size} and {checkpoint.stored_size}"
            raise InputError(f"{paths[0]} and {path} were trained on images of {sizes} pixels: they can't be averaged")
    models = [restore_captioner(checkpoint, path) for checkpoint, path in zip(checkpoints, paths)]
    alone = len(models) == 1
    # an ensemble has all that the evaluation needs of a captioner
    model = models[0] if alone else cast(CaptioningRNN, Ensemble(models))
    confidence = restore_confidence(checkpoints[0], paths[0]) if alone else None
    captioner = ImageCaptioner(model, checkpoints[0].stored_size, args.device or default_device(), confidence)
    with protecting([*paths, args.data or (None if args.image else checkpoints[0].data)]):
        answer(captioner, checkpoints[0], args, decoding)


def answer(captioner: ImageCaptioner, checkpoint: Checkpoint, args: Namespace, decoding: Decoding) -> None:
    """Export the model, caption images, or evaluate a split: what the flags ask for."""
    if args.export:
        if args.export.suffix != ".safetensors":
            raise InputError(f"--export {args.export}: the name of the file must end in .safetensors")
        if len(args.checkpoint) > 1:
            raise InputError("--export takes one checkpoint")
        if args.calibrate:
            checkpoint.confidence = calibrate(captioner, checkpoint, args, decoding).tensors()
        export_safetensors(checkpoint, args.export, args.export_bits)
        say(f"wrote {args.export}; use it like a --checkpoint or --init")
    elif args.image and (args.metrics or args.baselines or args.results):
        raise InputError(
            "--metrics, --baselines and --results are for a data set, --image for your own images: use one"
        )
    elif args.image:
        paths = find_images(args.image)
        with protecting(paths):
            caption_files(captioner, paths, args, decoding)
    else:
        evaluate_data(captioner, checkpoint, args, decoding)


def find_precision(captioner: ImageCaptioner, checkpoint: Checkpoint, args: Namespace) -> str:
    """The precision of --precision, or that of the training unless it is slow here."""
    trained = str(checkpoint.settings.get("precision", "fp32"))
    precision, reason = choose_precision(args.precision or trained, captioner.device, args.batch_size, SMALL)
    if reason and args.precision:
        warn(f"warning: --precision bf16 is slow: {reason}; use --precision fp32")
    elif reason:
        warn(f"precision: fp32, not bf16 as it was trained, because {reason}")
        return "fp32"
    return precision


def calibrate(captioner: ImageCaptioner, checkpoint: Checkpoint, args: Namespace, decoding: Decoding) -> Confidence:
    """Measure on the data of a checkpoint how sure its captioner is, and what its images look like."""
    data = load_captions(args.data or checkpoint.data)
    check_fit(captioner, data, checkpoint, args)
    feature_pass = FeaturePass(precision=find_precision(captioner, checkpoint, args))
    train, val = (
        prepare_pairs(captioner.model, data, name, feature_pass, cached=True).features for name in ("train", args.split)
    )
    assert train is not None and val is not None
    captions = captioner.caption_features(val, decoding, batch_size=args.batch_size)
    references = references_of(data.splits[args.split], data)
    return measure_confidence(train, val, [c.words for c in captions], [c.log_prob for c in captions], references)


def make_generator(args: Namespace, decoding: Decoding, used_device: str) -> torch.Generator | None:
    """The source of randomness, if words are drawn at random."""
    return torch.Generator(used_device).manual_seed(args.seed) if decoding.samples else None


# ---------------------------------------------------------------------------- the user's own images


def caption_files(captioner: ImageCaptioner, paths: Sequence[Path], args: Namespace, decoding: Decoding) -> None:
    """Caption the user's own images, one line each; report the images that can't be read."""
    if not paths:
        raise InputError(f"there are no images in {', '.join(args.image)}")
    if args.out and any(same_file(args.out, path.parent) for path in paths):
        raise InputError(
            f"--out {args.out} has the images to caption, and figures could overwrite them: choose another"
        )
    generator = make_generator(args, decoding, captioner.device)
    results: list[dict] = []
    done = 0
    for start in range(0, len(paths), 64):
        part = paths[start : start + 64]
        images, _, failed = load_images(part, captioner.stored_size)
        captioned = zip(images, captioner.caption_images(images, decoding, generator=generator))
        reasons = dict(failed)
        for path in part:
            if path in reasons:
                warn(f"{path}: {reasons[path]}")
                results.append({"image": str(path), "error": reasons[path]})
                continue
            image, caption = next(captioned)
            if args.out:
                draw(args.out / f"{path.stem}_{done}", image, caption, [])
            done += 1
            result = {"image": str(path), "caption": caption.text, "log_prob": round(caption.log_prob, 4)}
            if caption.sure is not None:
                result |= {"sure": round(caption.sure, 2), "familiar": caption.familiar}
            results.append(result)
            if not args.json:
                say(f"{path}: {caption.text}{describe_confidence(caption)}")
    if not done:
        raise InputError("none of the images could be read")
    if args.out:
        warn(f"images: {args.out}")  # standard output has one line for each image
    if args.json:
        for line in json.dumps(results, indent=2, ensure_ascii=False).splitlines():
            say(line)
    if done < len(paths):
        raise RunFailed(f"{len(paths) - done} of {len(paths)} images could not be read; the others are captioned")


def describe_confidence(caption: Caption) -> str:
    """What is printed after a caption by a model that can say how sure it is."""
    if caption.sure is None:
        return ""
    return f" ({100 * caption.sure:.0f} % sure{'' if caption.familiar else '; not like the images it was trained on'})"


# ------------------------------------------------------------------------------------ a data set


def evaluate_data(captioner: ImageCaptioner, checkpoint: Checkpoint, args: Namespace, decoding: Decoding) -> None:
    """Loss and perplexity on a split; sample images of train and val with their captions."""
    data = load_captions(args.data or checkpoint.data)
    check_fit(captioner, data, checkpoint, args)
    split, out = data.splits[args.split], args.out or Path("outputs")
    out.mkdir(parents=True, exist_ok=True)
    metrics = args.metrics or args.baselines
    references = references_of(split, data) if split.references or metrics else None
    if metrics and not can_score(references):
        raise InputError(f"{data.source}: the {args.split} split has too few references to score captions against")
    feature_pass = FeaturePass(precision=find_precision(captioner, checkpoint, args))
    models = captioner.model.captioners if isinstance(captioner.model, Ensemble) else [captioner.model]
    each = [prepare_pairs(model, data, args.split, feature_pass, cached=True) for model in models]
    pairs = each[0]
    if isinstance(captioner.model, Ensemble):  # its features are those of all its captioners
        joined = captioner.model.join([part.features for part in each if part.features is not None])
        pairs = replace(pairs, features=joined)
    per_caption, per_word = evaluate(captioner.model, pairs, args.batch_size, feature_pass.precision)
    say(
        f"{args.split}: {len(split)} captions of {len(split.images)} images; loss {per_caption:.3f} nats per "
        f"caption, {per_word:.3f} nats per word, perplexity {math.exp(min(per_word, 99)):.2f} per word"
    )
    generator = make_generator(args, decoding, captioner.device)
    if references or args.results:
        assert pairs.features is not None
        captions = captioner.caption_features(pairs.features, decoding, batch_size=args.batch_size, generator=generator)
        if args.results:
            write_results(args.results, split, captions)
    if references:
        right = sum(caption.words in map(tokenize, texts) for caption, texts in zip(captions, references))
        say(f"{args.split}: {right / len(captions):.1%} of the captions are identical to one of their references")
        if metrics:
            scores, per_image = score_captions([caption.text for caption in captions], references)
            rows = {"the model": scores}
            if args.baselines:
                rows |= baselines(models[0], data, each[0], references, feature_pass)
            assert pairs.features is not None
            share = self_retrieval(captioner, pairs.features, captions)
            scored = Scored(split.images, captions, references, per_image, rows, share)
            report_metrics(data, scored, out, args, decoding)
    for name in ("train", "val"):
        draw_samples(captioner, data.splits[name], name, out, args.num_samples, decoding, generator)
    say(f"images: {out}")


def write_results(path: Path, split: Split, captions: Sequence[Caption]) -> None:
    """Write captions in COCO's result format: a list of {"image_id", "caption"}."""
    rows = [{"image_id": i, "caption": caption.text} for i, caption in zip(image_ids(split), captions)]
    write_text(path, json.dumps(rows, ensure_ascii=False))
    say(f"captions in COCO's result format: {path}")


def image_ids(split: Split) -> list[int] | list[str]:
    """The number at the end of each image's name, as in COCO (000000391895.jpg); the names, if these are not unique or
    there are none; the rows, if there are no names."""
    names = split.image_names or [str(row) for row in range(len(split.images))]
    numbers = [re.search(r"([0-9]+)(?:\.[^./]*)?$", name) for name in names]
    found = [int(number[1]) for number in numbers if number]
    return found if len(set(found)) == len(names) else list(names)


def names_of(args: Namespace) -> str:
    """The names of the checkpoints, for people."""
    return " + ".join(map(str, args.checkpoint))


def self_retrieval(captioner: ImageCaptioner, features: Tensor, captions: Sequence[Caption]) -> float | None:
    """The fraction of RETRIEVED captions, spread evenly, that are most probable given their own image among as many;
    None if there are fewer."""
    if len(captions) < RETRIEVED:
        return None
    chosen = torch.linspace(0, len(captions) - 1, RETRIEVED).long()
    return retrieval(captioner.log_probs(features[chosen].float(), [captions[i] for i in chosen.tolist()]))


def report_metrics(data: CaptionData, scored: Scored, out: Path, args: Namespace, decoding: Decoding) -> None:
    """Print the scores of a split's captions, with the baselines; write them as JSON, and the results page."""
    split = data.splits[args.split]
    texts = [caption.text for caption in scored.captions]
    counts = [len(of_image) for of_image in scored.references]
    settings = {k: v for k, v in asdict(decoding).items() if v is not None and v is not False}
    known = "" if split.references else ", cut and without the words that the vocabulary does not contain"
    decoded = ", ".join(name if value is True else f"{name} {value}" for name, value in settings.items())
    each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    say(f"{args.split}: {len(texts)} images, {each} references each{known}; decoding: {decoded}")
    if max(counts) == 1:
        say("one reference per image: these scores are far below the usual ones with five references")
    say(f"{'in percent':<44}" + "".join(f"{name:>9}" for name in METRICS))
    for name, row in scored.rows.items():
        say(f"{name:<44}" + "".join(f"{row[metric]:9.1f}" for metric in METRICS))
    varied = diversity(texts, known_words(data.splits["train"].captions, data))
    say(
        f"{varied['distinct']:.1%} of the captions are distinct, with {varied['words_used']} different words; "
        f"{varied['distinct_pairs']:.1%} of the word pairs are; {varied['novel']:.1%} of the captions are new"
    )
    if scored.finds_itself is not None:
        varied["finds_itself"] = scored.finds_itself
        say(
            f"self-retrieval: {scored.finds_itself:.0%} of {RETRIEVED} captions are most probable given their own image"
        )
    images = [
        {"image": split.image_names[i] if split.image_names else i, "caption": texts[i]}
        | {"log_prob": scored.captions[i].log_prob, "references": scored.references[i]}
        | {metric: scored.per_image[metric][i] for metric in METRICS}
        for i in range(len(texts))
    ]
    result = {"data": data.source, "split": args.split, "checkpoint": names_of(args), "decoding": settings}
    result |= {"scores": scored.rows, "diversity": varied, "images": images}
    write_text(out / "metrics.json", json.dumps(result, indent=1, ensure_ascii=False))
    save_results_page(out / "results.html", f"{names_of(args)} on {data.source}, {args.split}", decoded, scored)
    say(f"scores per image: {out / 'metrics.json'}; best, median and worst captions: {out / 'results.html'}")


def baselines(
    model: CaptioningRNN,
    data: CaptionData,
    pairs: Pairs,
    references: Sequence[list[str]],
    feature_pass: FeaturePass,
) -> dict[str, dict[str, float]]:
    """The scores of captions that need no language model, or no model at all: rows of the table."""
    train = prepare_pairs(model, data, "train", feature_pass, cached=True)
    assert train.features is not None and pairs.features is not None
    texts = known_words(train.captions, data)
    rows = {}
    best = single_best_caption(texts, references)
    say(f"the single best caption: {best}")
    rows["the single best caption for every image"] = score_captions([best] * len(references), references)[0]
    first = {image: text for image, text in zip(reversed(train.image_index.tolist()), reversed(texts))}
    described = torch.tensor(sorted(first))
    mean, std = model.feature_mean.flatten().cpu(), model.feature_std.flatten().cpu()

    def standardized(features: Tensor) -> Tensor:  # pooled, each channel with mean 0 and variance 1
        return (pool(features).flatten(1) - mean) / std

    near = nearest_captions(
        standardized(pairs.features),
        standardized(train.features)[described],
        [first[i] for i in described.tolist()],
    )
    rows["the nearest training image's caption"] = score_captions(near, references)[0]
    human, others = human_against_others(references)
    if len(human) > 1:
        rows["one human caption against the others"] = score_captions(human, others)[0]
    return rows


def check_fit(captioner: ImageCaptioner, data: CaptionData, checkpoint: Checkpoint, args: Namespace) -> None:
    """Raises: InputError if the data has another vocabulary or stored size, or no such split."""
    if data.idx_to_word != captioner.model.idx_to_word:
        raise InputError(
            f"{data.source} has another vocabulary than {names_of(args)}, which was trained on {checkpoint.data}"
        )
    if args.split not in data.splits:
        raise InputError(f"{data.source} has no {args.split} split; it has {', '.join(data.splits)}")
    size = data.splits[args.split].images.shape[-1]
    if size != captioner.stored_size:
        raise InputError(
            f"{data.source} has images of {size} pixels, {names_of(args)} was trained on {captioner.stored_size}"
        )


def draw_samples(
    captioner: ImageCaptioner,
    split: Split,
    name: str,
    out: Path,
    num_samples: int,
    decoding: Decoding,
    generator: torch.Generator | None,
) -> None:
    """Draw images, spread evenly over a split, with generated captions and references."""
    chosen = torch.linspace(0, len(split.images) - 1, min(num_samples, len(split.images))).long()
    captions = captioner.caption_images(split.images[chosen], decoding, generator=generator)
    for k, (index, caption) in enumerate(zip(chosen.tolist(), captions)):
        rows = split.captions[split.image_index == index]
        references = split.references[index] if split.references else decode_captions(rows, captioner.model.idx_to_word)
        say(f"{name} {index}: {caption.text}  (true: {references[0] if references else 'none'})")
        draw(out / f"{name}_{k}", split.images[index], caption, references)


def draw(stem: Path, image: Tensor, caption: Caption, references: Sequence[str]) -> None:
    """Write an image with its caption, and where the model looked, if it has attention."""
    save_captioned_image(f"{stem}.png", image, caption.text, references)
    if caption.attention is not None:
        save_attention(stem, image, caption.words, caption.attention)
