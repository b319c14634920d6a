"""Read text files of captions, of all usual kinds: COCO and Karpathy JSON, Flickr8k and Flickr30k, and CSV.

Every reader yields triples (name of the image file, caption, split or None) in the order of the file. The report
counts and lists the entries that can't be used; all others are used.
"""

import csv
import io
import json
import posixpath
import re
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..files import read_text
from .vocabulary import has_words

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_captions(
    path: str | Path, report: list[str], flag: str = "--captions"
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read a text file of captions, of any known kind.

    Args: path; report, a list of lines, to which the counts and all problems are added; flag, the command-line
        flag that named the file, for messages.
    Returns: captions, a dict: image name -> list of raw captions; splits, a dict: image name ->
        "train", "val" or "test", empty if the file doesn't say.
    Raises: InputError if the file can't be read, has an unknown kind, or holds no captions.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise InputError(f"{flag} {path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{flag} {path} cannot be read as UTF-8 text: {error}") from error
    problems: dict[str, list[str]] = {}
    read = _read_json if text.lstrip()[:1] in ("{", "[") else _read_lines
    triples = read(text, path, problems)
    del text
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for name, caption, split in triples:
        name = posixpath.normpath(name) if isinstance(name, str) and name else name  # ./a.jpg is a.jpg
        if not _is_file_name(name):
            shown = name if isinstance(name, str) and name.isprintable() else ascii(name)
            problems.setdefault("image names that can't be used", []).append(shown)
        elif not isinstance(caption, str):
            problems.setdefault("captions that are not text", []).append(f"{name}: {caption!r}")
        elif not has_words(caption := caption.strip().encode("utf-8", "replace").decode()):
            problems.setdefault("captions without a word in them", []).append(f"{name}: {caption!r}")
        else:
            captions.setdefault(name, []).append(caption)
            if split:
                splits[name] = split
    if not captions:
        raise InputError(f"{flag} {path} holds no captions")
    report.append(f"captions: {path}, {sum(map(len, captions.values()))} for {len(captions)} images")
    for title, lines in problems.items():
        add_list(report, title, lines)
    return captions, splits


def add_list(report: list[str], title: str, lines: list[str]) -> None:
    """Add the number of lines to the report, and the lines below it."""
    if lines:
        report.append(f"{title}: {len(lines)}")
        report.extend(f"  {line}" for line in lines)


def _is_file_name(name):
    """Whether a name is a path inside the folder of images."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not name.startswith(("/", "\\"))


def _read_json(text, path, problems):
    try:
        data = json.loads(text)
        del text
        images = data["images"]
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise TypeError("images is not a list of objects")
        if "annotations" in data:
            yield from _read_coco(images, data["annotations"], problems)
        else:
            yield from _read_karpathy(images, problems)
    except RecursionError as error:
        raise InputError(f"--captions {path} is nested too deeply to be a captions file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--captions {path} is neither a COCO nor a Karpathy captions JSON ({type(error).__name__}: {error})"
        ) from error


def _read_coco(images, annotations, problems):
    names: dict = {}
    described = set()
    for image in images:
        identity, name = image["id"], image["file_name"]
        if not isinstance(name, str):
            problems.setdefault("images without a file name", []).append(str(identity))
        elif names.setdefault(identity, name) != name:
            problems.setdefault("image ids that occur twice", []).append(f"{identity}: {names[identity]}, {name}")
    for note in annotations:
        name, caption = names.get(note["image_id"]), note["caption"]
        if name is None:
            problems.setdefault("captions without an image", []).append(f"image {note['image_id']}: {caption!r}")
        else:
            if isinstance(caption, str):
                described.add(name)
            yield name, caption, None
    without = [name for name in names.values() if name not in described]
    if without:
        problems["images without a caption"] = without


def _read_karpathy(images, problems):
    for image in images:
        # the images of COCO are in the folders train2014 and val2014
        folder, name = image.get("filepath"), image["filename"]
        name = f"{folder}/{name}" if folder else name
        split = KARPATHY_SPLITS.get(image["split"])
        if split is None:
            problems.setdefault("images of an unknown split", []).append(f"{name}: {image['split']}")
            continue
        if not image["sentences"]:
            problems.setdefault("images without a caption", []).append(name)
        for sentence in image["sentences"]:
            yield name, sentence["raw"], split


def _read_lines(text, path, problems):
    """Flickr's ``name#0<TAB>caption``, Flickr30k's ``name| 0| caption``, or CSV with image,caption."""
    first = text.split("\n", 1)[0]
    if "\t" in first and "#" in first.split("\t")[0]:
        for line in filter(str.strip, _lines(text)):
            name, _, caption = line.partition("\t")
            yield name.rsplit("#", 1)[0].strip(), caption.strip(), None
    elif first.count("|") >= 2:
        header = not first.split("|")[1].strip().isdigit()  # else the first line is a caption already
        for line in filter(str.strip, _lines(text)[header:]):
            parts = line.split("|", 2)
            if len(parts) == 3:
                yield parts[0].strip(), parts[2].strip(), None
            else:
                problems.setdefault("lines that don't have three parts", []).append(line)
    else:
        yield from _read_csv(text, path, problems)


def _lines(text):
    """The lines of a text; unlike str.splitlines, form feeds and the like don't end one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _read_csv(text, path, problems):
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if header.count("image") != 1 or header.count("caption") != 1:
            raise InputError(
                f"--captions {path}: the first line must be image,caption (or use a COCO or Karpathy JSON, or "
                "Flickr's .token.txt)"
            )
        image, caption = header.index("image"), header.index("caption")
        two_columns = header == ["image", "caption"]
        for row in filter(None, rows):
            line = f"line {rows.line_num}: {row[0][:80]}"
            if any(re.search(r"\n[^\n]*\.\w{3,4}[\"']?,", cell) for cell in row):
                raise InputError(
                    f"--captions {path}: a quote that ends before line {rows.line_num} opens too early: "
                    f"a caption takes in the next lines; {line}"
                )
            if len(row) <= max(image, caption):
                problems.setdefault("lines without a caption", []).append(line)
            elif two_columns:  # the rest of the row is the caption: its commas need no quotes
                yield row[0].strip(), ",".join(row[1:]).strip(), None
            elif len(row) > len(header):
                problems.setdefault("lines with more columns than the first line", []).append(line)
            else:
                yield row[image].strip(), row[caption].strip(), None
    except csv.Error as error:
        raise InputError(f"--captions {path}, line {rows.line_num}: {error}") from error
