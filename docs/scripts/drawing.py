"""A small drawing board for the diagrams: boxes, arrows and labels with indices, as SVG that reads in light and dark.

A drawing is 440 units wide at most and its text 16 high at least, so that it can be read on a phone (360 pixels).
"""

import re
from pathlib import Path
from xml.etree import ElementTree

IMAGES = Path(__file__).parents[1] / "images"
COLOURS = {  # name: in light, in dark
    "ink": ("#1f2328", "#e6edf3"),
    "paper": ("#ffffff", "#0d1117"),
    "line": ("#57606a", "#9198a1"),
    "box": ("#ddeafc", "#173255"),
    "second": ("#dff3e4", "#123a22"),
    "third": ("#fdf0d0", "#45370b"),
    "fourth": ("#f3e3fb", "#3a2150"),
    "back": ("#b34700", "#ff9d4d"),
}
STYLE = """
svg{{{light}}}
@media (prefers-color-scheme:dark){{svg{{{dark}}}}}
text{{font-family:'DejaVu Sans',Verdana,sans-serif;fill:var(--ink);text-anchor:middle}}
.tag{{fill:var(--line)}} .back{{fill:var(--back)}} .line{{fill:none;stroke:var(--line);stroke-width:1.5}}
.backline{{fill:none;stroke:var(--back);stroke-width:2}} .bold{{stroke-width:5}}
"""


class Drawing:
    """One diagram. Args: name, of its file; title; description, for those who do not see it; height; width."""

    def __init__(self, name: str, title: str, description: str, height: int, width: int = 440) -> None:
        self.name, self.description = name, description
        self.root = ElementTree.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img"
        )
        self.root.set("aria-labelledby", "title description")
        ElementTree.SubElement(self.root, "title", id="title").text = title
        ElementTree.SubElement(self.root, "desc", id="description").text = description
        light, dark = ("".join(f"--{name}:{pair[k]};" for name, pair in COLOURS.items()) for k in (0, 1))
        ElementTree.SubElement(self.root, "style").text = STYLE.format(light=light, dark=dark)
        definitions = ElementTree.SubElement(self.root, "defs")
        for kind, colour in (("line", "line"), ("backline", "back")):
            marker = ElementTree.SubElement(
                definitions, "marker", id=kind, viewBox="0 0 10 10", refX="9", refY="5", orient="auto"
            )
            marker.set("markerWidth", "9")
            marker.set("markerHeight", "9")
            marker.set("markerUnits", "userSpaceOnUse")
            ElementTree.SubElement(marker, "path", d="M0 0L10 5L0 10z", style=f"fill:var(--{colour})")
        self.add("rect", width=width, height=height, rx=8, style="fill:var(--paper)")

    def add(self, kind: str, **attributes: object) -> ElementTree.Element:
        """Any SVG element; ``class_`` is its class."""
        return ElementTree.SubElement(
            self.root, kind, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
        )

    def text(self, x: float, y: float, words: str, kind: str = "", size: int = 16, anchor: str = "middle") -> None:
        """Words centred at x, y. ``h_t`` and ``W^T`` make indices; several characters need braces: ``h_{t-1}``."""
        element = self.add("text", x=x, y=y + size * 0.35, font_size=size, style=f"text-anchor:{anchor}")
        if kind:
            element.set("class", kind)
        shift = 0.0
        for mark, braces, letter, plain in re.findall(r"([_^])(?:\{([^}]*)\}|(.))|([^_^]+)", words):
            wanted = {"_": 0.3, "^": -0.4}.get(mark, 0.0) * size
            part = ElementTree.SubElement(element, "tspan", dy=f"{wanted - shift:.1f}")
            part.text = braces or letter or plain
            if mark:
                part.set("font-size", str(max(12, round(size * 0.75))))
            shift = wanted

    def box(
        self, x: float, y: float, width: float, height: float, words: str = "", colour: str = "box", size: int = 16
    ) -> None:
        """A box centred at x, y."""
        style = f"fill:var(--{colour});stroke:var(--line)"
        self.add("rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=6, style=style)
        for k, line in enumerate(lines := words.split("\n")):
            self.text(x, y + (k - (len(lines) - 1) / 2) * (size + 4), line, size=size)

    def circle(self, x: float, y: float, words: str, colour: str = "paper") -> None:
        """An operation, such as + or ×."""
        self.add("circle", cx=x, cy=y, r=13 if len(words) < 2 else 17, style=f"fill:var(--{colour});stroke:var(--line)")
        self.text(x, y, words)

    def arrow(self, *points: tuple[float, float], kind: str = "line", bold: bool = False, head: bool = True) -> None:
        """A line through the points with an arrow at its end; kind "backline" for gradients."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        element = self.add("path", d=path, class_=f"{kind} bold" if bold else kind)
        if head:
            element.set("marker-end", f"url(#{kind})")

    def xml(self) -> str:
        for part in self.root:  # one line for each; spaces between the parts of a text would be drawn
            part.tail = "\n"
        return ElementTree.tostring(self.root, encoding="unicode") + "\n"

    def write(self, folder: Path) -> None:
        (folder / f"{self.name}.svg").write_text(self.xml(), encoding="utf-8")
