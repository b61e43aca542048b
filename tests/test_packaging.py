import re
import subprocess
import sys
import tomllib
from pathlib import Path

import mar_snn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = [
    path for folder in ("mar_snn", "neurons") for path in (ROOT / folder).rglob("*.py")
]


def test_the_public_names_are_few_and_all_resolve():
    assert len(mar_snn.__all__) == 13
    assert mar_snn.__all__ == sorted(mar_snn._HOMES)
    for name in mar_snn.__all__:
        assert getattr(mar_snn, name).__name__ == name
        assert name in dir(mar_snn)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(mar_snn, "ATMNode")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mar_snn; heavy = {'torch', 'transformers', 'spikingjelly', "
        "'matplotlib', 'datasets', 'triton', 'cupy', 'lm_eval'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n"


def test_every_package_folder_is_listed_for_the_wheel():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {"mar_snn.neurons"} | {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mar_snn").rglob("__init__.py")
    }
    assert listed == folders


def test_the_link_shows_the_same_files_as_the_folder():
    assert (ROOT / "neurons").is_dir()
    assert not (ROOT / "neurons").is_symlink()
    assert (ROOT / "mar_snn/neurons").resolve() == ROOT / "neurons"
    assert sys.modules.get("neurons") is None


def test_every_install_hint_names_an_extra_that_exists():
    extras = set(PROJECT["project"]["optional-dependencies"])
    hints = {
        extra
        for path in SOURCES
        for extra in re.findall(r"mar-snn\[(\w+)\]", path.read_text())
    }
    assert hints <= extras
    assert hints


def test_the_changelog_opens_with_this_version_and_the_citation_has_it():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([\d.]+)\]", changelog, re.M)[0] == mar_snn.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {mar_snn.__version__}" in citation.replace('"', "")
