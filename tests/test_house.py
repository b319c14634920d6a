"""The structure of the package: imports, type hints, names, and requirements."""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_lstm_captioning
from rnn_lstm_captioning.cells import CELLS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rnn_lstm_captioning"
FILES = sorted(PACKAGE.rglob("*.py"))


def run_python(code):
    """Run code in a new process. Returns: the JSON that it prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_the_cells_import_torch_and_nothing_else():
    torch_alone = run_python("import json, sys, torch; print(json.dumps(sorted(sys.modules)))")
    with_cells = run_python("import json, sys, rnn_lstm_captioning.cells; print(json.dumps(sorted(sys.modules)))")
    added = {name for name in set(with_cells) - set(torch_alone) if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in added} <= {"rnn_lstm_captioning", "torch"}
    assert {name.split(".")[1] for name in added if name.startswith("rnn_lstm_captioning.")} == {"cells"}


def test_importing_the_package_loads_neither_torch_nor_its_modules():
    loaded = run_python("import json, sys, rnn_lstm_captioning; print(json.dumps(sorted(sys.modules)))")
    assert "torch" not in loaded and not any(name.startswith("rnn_lstm_captioning.") for name in loaded)


def test_every_name_of_the_top_level_exists():
    for name in dir(rnn_lstm_captioning):
        assert getattr(rnn_lstm_captioning, name) is not None, name
    assert {"CaptioningRNN", "LSTM", "GRU", "lstm_forward", "Trainer", "load_captioner"} <= set(
        dir(rnn_lstm_captioning)
    )
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        rnn_lstm_captioning.nonsense  # noqa: B018


def test_a_notebook_can_import_everything():
    names: dict = {}
    exec("from rnn_lstm_captioning import *", names)
    assert {"CaptioningRNN", "LSTM", "lstm_forward", "load_captioner", "temporal_softmax_loss"} <= names.keys()


def test_no_module_hides_one_of_the_standard_library():
    assert not {path.stem for path in FILES} & set(sys.stdlib_module_names) - {"__init__", "__main__"}


def test_every_package_says_what_it_contains():
    packages = [module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if module.ispkg]
    assert sorted(packages) == ["cells", "classroom", "commands", "data", "evaluation", "model", "training"]
    for name in packages:
        doc = importlib.import_module(f"rnn_lstm_captioning.{name}").__doc__
        assert doc and "\n\n" not in doc.strip() and len(doc) > 80, name


def public_functions(path):
    """Yields the public functions of a file, and the public methods and __init__ of its public classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (
                child
                for child in node.body
                if isinstance(child, ast.FunctionDef) and (child.name == "__init__" or not child.name.startswith("_"))
            )


PLAIN = {"solution.py"}  # it is written as a learner writes


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_have_type_hints(path):
    for function in public_functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names = {a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls", "ctx")}
        if path.name not in PLAIN:
            assert not names, f"{function.name}: {names}"
            assert function.returns is not None, function.name


def test_only_commands_parse_arguments_and_print():
    for path in FILES:
        if path.parent.name == "commands" or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path
            assert not (isinstance(node, ast.Import | ast.ImportFrom) and "argparse" in ast.unparse(node)), path


def test_no_module_outside_the_cells_asks_which_cell_it_has():
    names = "|".join({*CELLS, *(cell.prefix for cell in CELLS.values())})
    question = re.compile(rf"""(cell|cell_type|kind|name)\s*(==|!=|in \()\s*["'(]*({names})["']""")
    for path in FILES:
        if path.parent.name != "cells":
            assert not question.search(path.read_text(encoding="utf-8")), path


def test_the_requirements_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def lines(name):
        text = (ROOT / name).read_text()
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    assert lines("requirements.txt") == project["dependencies"] + project["optional-dependencies"]["test"]
    assert lines("requirements-demo.txt") == project["optional-dependencies"]["demo"]
    assert lines("requirements-docs.txt") == project["optional-dependencies"]["docs"]


def test_pytest_collects_nothing_in_the_scripts():
    scripts = ["test_rnn.py", "test_lstm.py", "test_lstm_attention.py"]
    result = subprocess.run([sys.executable, "-m", "pytest", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 5 and "no tests ran" in result.stdout, result.stdout


def test_the_program_without_a_command_lists_its_commands():
    def run(*arguments):
        command = [sys.executable, "-m", "rnn_lstm_captioning", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    listed = run()
    assert listed.returncode == 0
    for name in ("train", "test", "build", "check", "inspect", "demo"):
        assert f"  {name} " in listed.stdout
    unknown = run("caption")
    assert unknown.returncode == 2 and "there is no command caption: use train" in unknown.stderr
