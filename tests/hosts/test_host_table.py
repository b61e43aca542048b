"""The table of docs/hosts.md: each cell is found out again, and stands as committed."""

import json

import host_table
import pytest
from host_table import CHECKS, PAGE, RESULTS
from tiny_hosts import HOSTS

from mar_snn import provenance

# what peft calls, transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")

ROWS = {row["host"]: row for row in json.loads(RESULTS.read_text("utf-8"))["rows"]}


def test_the_page_shows_what_was_found():
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition(host_table.BEGIN)[2].partition(host_table.END)[0]
    assert table.strip() == host_table.markdown(list(ROWS.values())).strip()


def test_every_host_was_tried_in_every_way():
    assert list(ROWS) == list(HOSTS)
    assert all(list(row["checks"]) == list(CHECKS) for row in ROWS.values())


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("title", CHECKS)
def test_what_the_table_says_is_so(name, title):
    answer, committed = CHECKS[title](name), ROWS[name]["checks"][title]
    assert answer
    if title == "distance to dense":  # its digits are those of a machine
        assert committed
    else:
        assert answer == committed


def test_a_row_is_what_was_found(monkeypatch):
    monkeypatch.setattr(host_table, "CHECKS", {"one": lambda name: name == "Jamba"})
    found = host_table.row("Jamba")
    assert found["checks"] == {"one": True}
    assert found["coders"] == ROWS["Jamba"]["coders"] == 4
    assert found["notes"] == ROWS["Jamba"]["notes"]
    assert found["sites"] == ["mixer.in", "mixer.out", "mlp.in", "mlp.out"]


def test_a_table_has_a_line_for_each_host(monkeypatch):
    monkeypatch.setattr(host_table, "CHECKS", {"a": None, "b": None, "c": None})
    row = {"host": "H", "sites": ["mlp.in"], "notes": ["x", "y"]}
    row["checks"] = {"a": True, "b": False, "c": "not z"}
    assert host_table.markdown([row]) == (
        "| host | sites | a | b | c | notes |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| H | mlp.in | yes | no | not z | x; y |\n"
    )


def test_the_script_writes_results_and_page(monkeypatch, tmp_path, capsys):
    page = tmp_path / "hosts.md"
    page.write_text(f"above\n{host_table.BEGIN}old\n{host_table.END}\nbelow\n")
    monkeypatch.setattr(host_table, "PAGE", page)
    monkeypatch.setattr(host_table, "RESULTS", tmp_path / "hosts.json")
    monkeypatch.setattr(host_table, "HOSTS", {"Llama": HOSTS["Llama"]})
    monkeypatch.setattr(host_table, "CHECKS", {})
    host_table.main()
    written = json.loads((tmp_path / "hosts.json").read_text())
    assert [row["host"] for row in written["rows"]] == ["Llama"]
    assert written["versions"] == provenance.versions("peft")
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "| Llama | mlp.in, mlp.out |" in text
    assert "old" not in text
