"""Points for a learner's functions, and the file that Gradescope reads."""

from collections.abc import Mapping, Sequence

from ..errors import InputError
from .judging import BORROWED
from .plain_cells import ORDER


def points_from(needed: Sequence[str]) -> dict[str, float]:
    """The points of functions that are written as ``NAME`` or ``NAME=POINTS``. Raises: InputError for an unknown name,
    or points that are no number."""
    points = {}
    for text in needed:
        name, _, value = text.partition("=")
        if name not in ORDER:
            raise InputError(f"--need: there is no function {name}; the functions are {', '.join(ORDER)}")
        try:
            points[name] = float(value or 1)
        except ValueError as error:
            raise InputError(f"--need {text}: {value} is not a number of points") from error
    return points


def gradescope_results(
    results: Sequence[tuple[str, str, str]], points: Mapping[str, float], marks: Mapping[str, str]
) -> dict:
    """What Gradescope reads from results.json: one test for each needed function, or, without any, for each that is in
    the file. A function of this package gives no points."""
    found = {name: (outcome, message) for name, outcome, message in results}
    tests = []
    for name in points or found:
        outcome, message = found.get(name, ("todo", ""))
        most = points.get(name, 1.0)
        right = outcome == "right" and BORROWED not in message
        tests.append(
            {
                "name": name,
                "score": most if right else 0.0,
                "max_score": most,
                "status": "passed" if right else "failed",
                "output": f"{marks[outcome]}{': ' if message else ''}{message}",
            }
        )
    return {"tests": tests, "score": sum(test["score"] for test in tests)}
