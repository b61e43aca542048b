"""What all examples share: how they are started, and how they end."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMANDS = [
    path.stem
    for path in sorted(EXAMPLES.glob("*.py"))
    if "def main()" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", COMMANDS)
def test_python_m_finds_the_modules_beside_an_example(name, monkeypatch):
    beside = [path.stem for path in EXAMPLES.glob("*.py")]
    for module in (*beside, "examples", *(f"examples.{stem}" for stem in beside)):
        monkeypatch.delitem(sys.modules, module, raising=False)
    elsewhere = [path for path in sys.path if Path(path) != EXAMPLES]
    monkeypatch.setattr(sys, "path", [str(EXAMPLES.parent), *elsewhere])
    assert callable(runpy.run_module(f"examples.{name}")["main"])


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_one_line_and_exit_code_130(name, load_example, monkeypatch, capsys):
    example = load_example(name)
    for parser in ("ArgumentParser", "HfArgumentParser"):
        monkeypatch.setattr(example, parser, interrupt, raising=False)
    assert example.main() == 130
    _, line, rest = capsys.readouterr().err.split("\n")
    assert line.startswith("Interrupted: ")
    assert rest == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_one_line_while_the_rest_is_imported(name, load_example, capsys):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    slow = [
        text.find(f"{word} {package}")
        for word in ("import", "from")
        for package in ("torch", "transformers", "matplotlib", "mar_snn", "datasets")
    ]
    assert 0 < text.find("import command\n") < min(at for at in slow if at > 0)
    hook = load_example("command").sys.excepthook
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "\nInterrupted while starting\n"


def test_other_errors_of_imports_are_shown_as_ever(load_example, capsys):
    error = ImportError("no such package")
    load_example("command").sys.excepthook(ImportError, error, None)
    assert capsys.readouterr().err == "ImportError: no such package\n"
