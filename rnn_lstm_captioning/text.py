"""Text of unknown origin (words, file names, error messages) as one line that is safe to print."""

import unicodedata

# line and paragraph separators, lone surrogates, and everything that controls a terminal
CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
# marks that reorder the text around them: a file name could look like another one
REORDERING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """The text in one line: control characters are written as escapes, such as ``\\n`` and ``\\x1b``."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(map(_escaped, shown))


def _escaped(character):
    if unicodedata.category(character) in CONTROLS or character in REORDERING:
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character
