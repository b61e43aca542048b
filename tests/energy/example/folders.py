"""What a run of examples/energy_report.py leaves in its folder."""

import csv
from pathlib import Path

from matplotlib.image import imread

from mar_snn.energy import EnergyReport

FILES = ("report.json", "report.md", "report.tex", "rows.csv")
DENSE_PICTURES = ("groups", "traffic")
SPIKING_PICTURES = (*DENSE_PICTURES, "profiles", "break_even", "firing")


def check_folder(folder: Path, pictures: tuple[str, ...]) -> EnergyReport:
    """The report of a folder that has all files, those pictures and no others."""
    assert all((folder / name).stat().st_size > 100 for name in FILES)
    assert {path.stem for path in folder.glob("*.png")} == set(pictures)
    assert "Not a measurement" in (folder / "report.md").read_text()
    assert "\\begin{table}" in (folder / "report.tex").read_text()
    report = EnergyReport.load(folder / "report.json")
    with (folder / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [row.name for row in report.rows]
    assert sum(int(row["mac"]) for row in rows) == report.total.mac
    return report


def check_pictures(folder: Path) -> None:
    for path in folder.glob("*.png"):
        image = imread(path)
        assert image.shape[:2] == (600, 1080)
        assert image[..., :3].min() < 0.5 < image[..., :3].max()  # something is drawn
