"""Run the notebook and store its outputs in it, for readers on the web.

make tour            # or: python -m docs.scripts.tour; needs requirements-docs.txt
"""

import base64
import io
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

TOUR = Path(__file__).parents[1] / "tour.ipynb"


def run(replaced: dict[str, str] | None = None, seconds: float = 900) -> nbformat.NotebookNode:
    """Run all cells, in the folder of the notebook. Args: replaced, texts to change in the code first, for a fast run;
    seconds, the limit of a cell. Raises: nbclient's CellExecutionError if a cell fails."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a warning of the kernel that nobody can use
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        for text, other in (replaced or {}).items():
            cell.source = cell.source.replace(text, other)
    NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    return notebook


def smaller(png: str) -> str:
    """A PNG in base64 with 64 colours: a third of the bytes."""
    with io.BytesIO(base64.b64decode(png)) as file, io.BytesIO() as out:
        Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    notebook = run()
    for cell in notebook.cells:
        cell.metadata.clear()  # the times of this run
        cell.pop("id", None)  # random names
        cell.get("outputs", [])[:] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = smaller(output["data"]["image/png"])
    notebook.nbformat_minor = 4
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    beside = TOUR.with_suffix(".ipynb.new")
    nbformat.write(notebook, beside)
    beside.replace(TOUR)
    print(f"wrote {TOUR}")


if __name__ == "__main__":
    main()
