"""The site: all pages as HTML that works from the disk, without a server and without a network.

    make site            # or: python -m docs.scripts.site; open build/site/index.html

Sphinx makes the pages. For each file with tags a page is added on which equation and code stand side by side: the
explanation and the formula come from the lesson, the lines from the code, and the tags join them.
"""

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS, PACKAGE = ROOT / "docs", ROOT / "rnn_lstm_captioning"
LESSONS = {"rnn": "rnn", "lstm": "lstm", "gru": "gru", "attention": "attention", "layers": "loss", "losses": "loss"}
ORDER = "pictures rnn lstm gradients gru attention loss decoding metrics speed inside tour notation".split()
OTHERS = (
    "readme data machines python troubleshooting teaching results errors model reliability benchmarks contributing"
).split()
PAGES = {
    "README.md": "readme",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/README.md": "benchmarks",
    "models/README.md": "model",
}
TAG = r"\(([A-Z]+-\d+)\)"


# ------------------------------------------------------------------------------- equation and code


def explanations(lesson: str) -> dict[str, str]:
    """Of each tag of a page: the paragraph before its formula, and the formula, as Markdown."""
    parts, found = re.split(r"\n{2,}", lesson), {}
    for before, part in zip(["", *parts], parts):
        tag = re.search(TAG, part)
        if part.startswith("$$") and tag:
            prose = before and not re.match(r"[#|<!`-]|\$\$|\d+\.", before)
            found[tag[1]] = f"{before}\n\n{part}" if prose else part
    return found


def segments(code: str) -> list[tuple[list[str], str]]:
    """A file in pieces: (tags, lines). A piece with tags is the comment and the lines that it explains."""
    found: list[tuple[list[str], list[str]]] = [([], [])]
    for line in code.splitlines():
        tag = re.search(rf"^\s*#.*{TAG}\s*$", line)
        indent = len(line) - len(line.lstrip())
        if tag:
            found.append(([tag[1]], [line]))
        elif found[-1][0] and len(found[-1][1]) > 1 and _ends(line, indent, found[-1][1][0]):
            found.append(([], [line]))
        else:
            found[-1][1].append(line)
    pieces = [(tags, "\n".join(lines).strip("\n")) for tags, lines in found]
    return [(tags, lines) for tags, lines in pieces if lines]


def _ends(line: str, indent: int, first: str) -> bool:
    """Whether this line is behind the lines that a comment explains."""
    return not line.strip() or indent < len(first) - len(first.lstrip()) or line.lstrip().startswith("return")


def side_by_side(name: str, code: str) -> str:
    """The page of a file in cells/ with this code, as Markdown."""
    lesson = LESSONS[name]
    known = explanations((DOCS / f"{lesson}.md").read_text(encoding="utf-8"))
    rows = [
        f"# {name}.py, beside its equations",
        f"Left: the equations of [the lesson]({lesson}.md). Right: `rnn_lstm_captioning/cells/{name}.py`, the file "
        "that trains, complete and in its own order. Hover or tap a tag, and its partner lights up.",
    ]
    for tags, lines in segments(code):
        words = "\n\n".join(known[tag] for tag in tags)
        lines = re.sub(rf"  +({TAG})", r"  \1", lines)  # tags close to their comments
        rows.append(
            f":::::{{container}} pair\n\n::::{{container}} words\n\n{words}\n\n::::\n\n::::{{container}} lines\n\n"
            f"```python\n{lines}\n```\n\n::::\n\n:::::"
        )
    return "\n\n".join(rows) + "\n"


# --------------------------------------------------------------------------------- all other pages


def notebook(path: Path, images: Path) -> str:
    """A notebook with its stored outputs as Markdown."""
    parts = []
    for place, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for number, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                file = images / f"tour_{place}_{number}.png"
                file.write_bytes(base64.b64decode("".join(data["image/png"])))
                parts.append(f"![What this cell draws](images/{file.name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def linked(text: str, source: Path, sources: set[Path]) -> str:
    """A page's text with its links changed to the pages of the site; ``sources`` collects the code that it links to."""

    def change(match):
        before, target, anchor = match[1], match[2], match[3] or ""
        path = (source.parent / target).resolve()
        if target.startswith(("http", "images/")) or not path.exists():
            return match[0]
        relative = path.relative_to(ROOT).as_posix()
        if relative in PAGES:
            return f"{before}({PAGES[relative]}.md{anchor})"
        if path == DOCS / "README.md":
            return f"{before}(index.md)"
        if path.suffix in (".md", ".ipynb") and path.parent == DOCS:
            return f"{before}({path.stem}.md{anchor})"
        if path.suffix == ".py" and path.parent == PACKAGE / "cells" and path.stem in LESSONS:
            return f"{before}(code_{path.stem}.md)"
        if path.suffix in (".png", ".svg", ".gif"):
            return f"{before}(images/{path.name})"
        if path.is_file():
            sources.add(path)
            return f"{before}(source_{path.stem}.md)"
        return f"{before[1:-1]}" if before.startswith("[") else match[0]

    return re.sub(r"(!?\[[^\]]*\])\(([^)#\s]+)(#[^)]*)?\)", change, text)


def prepare(folder: Path) -> None:
    """Write what Sphinx reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(DOCS / "images", folder / "images")
    shutil.copytree(DOCS / "site/_static", folder / "_static")
    texts = {path.stem: (path, path.read_text(encoding="utf-8")) for path in DOCS.glob("*.md")}
    texts["index"] = texts.pop("README")
    texts["tour"] = DOCS / "tour.ipynb", notebook(DOCS / "tour.ipynb", folder / "images")
    for name, page in PAGES.items():
        texts[page] = ROOT / name, (ROOT / name).read_text(encoding="utf-8")
    sources: set[Path] = set()
    for name, (path, text) in texts.items():
        text = linked(text, path, sources)
        if name == "index":
            text += _contents("Lessons", ORDER)
            text += _contents("Equation and code", [f"code_{name}" for name in LESSONS])
            text += _contents("Reference", OTHERS)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    tag_pages = {}
    for name, lesson in LESSONS.items():
        code = (PACKAGE / f"cells/{name}.py").read_text(encoding="utf-8")
        text = linked(side_by_side(name, code), DOCS / "x.md", sources)
        (folder / f"code_{name}.md").write_text(text, encoding="utf-8")
        tag_pages |= {tag: {"lesson": lesson, "code": f"code_{name}"} for tag in re.findall(TAG, code)}
    for path in sources:
        language = {".py": "python", ".ipynb": "json"}.get(path.suffix, "text")
        text = f"---\norphan: true\n---\n\n# {path.relative_to(ROOT).as_posix()}\n\n"
        text += f"``````{language}\n{path.read_text(encoding='utf-8')}\n``````\n"
        (folder / f"source_{path.stem}.md").write_text(text, encoding="utf-8")
    settings = (DOCS / "site/conf.py").read_text(encoding="utf-8")
    (folder / "conf.py").write_text(f"{settings}\n\ntag_pages = {tag_pages!r}\n", encoding="utf-8")


def _contents(title: str, names: list[str]) -> str:
    return f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) + "\n```\n"


def build(out: Path) -> None:
    """Make the site. Raises: subprocess.CalledProcessError if Sphinx warns, for example of a dead link."""
    source = out.with_name(f"{out.name}_source")
    prepare(source)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(source), str(out)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/site")
    args = parser.parse_args()
    build(args.out)
    print(f"wrote {args.out / 'index.html'}")
