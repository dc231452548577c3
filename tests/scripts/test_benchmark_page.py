"""scripts/benchmark.py page, and the page that stands in docs/."""

import json
from pathlib import Path

import pytest

from data.settings import UserError
from scripts._benchmark.page import make_page
from scripts._benchmark.records import Rounds, add_values, make_record
from scripts.benchmark import main

DOCS = Path(__file__).parents[2] / "docs"


def test_a_page_has_each_record_with_its_command_machine_and_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = Rounds(by_variant={"step": [3.0, 1.0, 2.0], "timm": [1000.0, 2000.0, 2000.0]})
    record = make_record("step", {}, Rounds(), {})
    add_values(record, speeds, {"cost": ("step", "timm")}, is_cost=True)
    for name in ("b", "a"):
        command = f"python scripts/benchmark.py step --json {name}.json"
        (tmp_path / f"{name}.json").write_text(json.dumps(record | {"command": command}))
    main(["page", str(tmp_path)])
    page = capsys.readouterr().out
    assert page.index("### a\n") < page.index("step --json a.json") < page.index("### b\n")
    assert "| step | 2.000 | 1.000 | 3.000 |" in page
    assert "| timm | 2,000 | 1,000 | 2,000 |" in page
    assert "| cost (lower is better) | 0.001 | 0.001 | 0.003 |" in page
    assert f"torch {record['machine']['torch']}" in page


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record"):
        main(["page", str(tmp_path)])


def test_the_page_in_docs_is_made_of_the_records_there() -> None:
    assert (DOCS / "results/speed.md").read_text() == make_page(DOCS / "benchmarks")
