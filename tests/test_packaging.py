import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import fmean, stdev

import mar_snn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = [
    path for folder in ("mar_snn", "neurons") for path in (ROOT / folder).rglob("*.py")
]


def test_the_public_names_are_few_and_all_resolve():
    assert len(mar_snn.__all__) == 12
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


def read_results(name):
    path = ROOT / "benchmarks" / "results" / name
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_figures_of_the_readme_are_those_of_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo = read_results("demo-cpu.json")
    mean, std = demo["mean"], demo["std"]
    calibrated = mean["perplexity.calibrated"] / mean["perplexity.teacher"]
    for figure in (
        f"| dense teacher | {mean['perplexity.teacher']:.2f} | 1 |",
        f"| {mean['perplexity.calibrated']:.2f} ± {std['perplexity.calibrated']:.2f} |"
        f" {calibrated:.3f} |",
        f"| {mean['perplexity.distilled']:.2f} ± {std['perplexity.distilled']:.2f} |"
        f" {mean['perplexity_ratio']:.3f} ± {std['perplexity_ratio']:.3f} |",
        f"micro-step: {mean['firing_rate']:.3f}.",
        f"spiking = {mean['energy_ratio']:.2f}, and "
        f"{mean['energy_ratio_without_lm_head']:.2f} without",
        f" {mean['seconds']:.0f} s.",
        f"spiking, {demo['steps']} steps of SBDS",
    ):
        assert figure in readme
    for runs in read_results("swap_neurons-cpu.json")["results"].values():
        cells = [
            f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"
            for values, digits in (
                ([100 * run["accuracy"] for run in runs], 1),
                ([100 * run["firing_rate"] for run in runs], 1),
                ([run["synops"] for run in runs], 0),
            )
        ]
        assert f"| {' | '.join(cells)} |" in readme


def test_the_figures_of_the_fire_ratio_are_those_of_the_committed_results():
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    for ratio, name in (("2/3", "demo-cpu.json"), ("1", "demo-rho1-cpu.json")):
        results = read_results(name)
        cells = [
            f"{results['mean'][key]:,.{digits}f} ± {results['std'][key]:,.{digits}f}"
            for key, digits in (
                ("perplexity.calibrated", 2),
                ("perplexity.distilled", 2),
                ("perplexity_ratio", 3),
                ("firing_rate", 4),
                ("synops_per_token", 0),
            )
        ]
        assert f"| {ratio} | {' | '.join(cells)} |" in page


def test_the_distilled_student_is_within_five_percent_of_its_teacher():
    for run in read_results("demo-cpu.json")["runs"]:
        assert run["perplexity_ratio"] <= 1.05


def test_no_source_file_is_longer_than_400_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_tests_have_at_least_as_many_lines_as_the_source():
    def lines(paths):
        # the link shows neurons/ a second time
        return sum(
            len(p.read_text(encoding="utf-8").splitlines())
            for p in paths
            if "mar_snn/neurons" not in p.as_posix()
        )

    source = lines(set(SOURCES))
    assert lines((ROOT / "tests").rglob("*.py")) >= source
