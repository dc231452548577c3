"""The documentation builds without a warning, and its checks find what is wrong."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts._docs.drawing import draw
from scripts._docs.markdown import escape
from scripts._docs.notebook import make_notebook_pages
from scripts._docs.rooms import find_arrows

ROOT = Path(__file__).resolve().parents[1]
UNDOCUMENTED = "D100,D101,D102,D103,D104"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def build(site: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/pretrain.html").read_text()
    assert 'id="run.micro_batch_size"' in page
    assert "images a forward pass on each process" in page
    assert "<svg" in (tmp_path / "site/design/rooms.html").read_text()


def test_a_wrong_link_or_a_page_outside_the_nav_fails(tmp_path: Path) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    wrong = ["[a](gone.md)", "[a](other.md#lost)", "[a](/index.md)"]
    (pages / "index.md").write_text("\n\n".join(["# Start", *wrong]))
    (pages / "other.md").write_text("# Other\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n"
    )
    done = build(tmp_path / "site", config)
    assert done.returncode == 1
    for complaint in ("gone.md", "#lost", "absolute link", "not included"):
        assert complaint in done.stderr


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_a_page_beside_the_code_links_to_what_is_there(name: str) -> None:
    for path, anchor in LINK.findall((ROOT / name).read_text()):
        target = ROOT / (path or name)
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


def test_each_public_name_has_a_docstring() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", UNDOCUMENTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_arrow_that_follows_from_others_is_not_drawn() -> None:
    drawing = draw({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert drawing.count("marker-end") == 2


def test_rooms_that_import_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="in a circle, or above one: a, b"):
        draw({"a": {"b"}, "b": {"a"}, "c": set()})


def test_arrows_are_those_of_the_imports(tmp_path: Path) -> None:
    for path, text in {
        "data/one.py": "import json\n",
        "data/index/two.py": "from data.one import f\n",
        "pretrain/run.py": "from data.index import two\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert find_arrows(tmp_path, "data") == {
        "data/one.py": set(),
        "data/index/": {"data/one.py"},
    }
    assert find_arrows(tmp_path, "pretrain") == {"data/": set(), "pretrain/run.py": {"data/"}}


def write_notebook(path: Path, count: int | None, *outputs: dict[str, Any]) -> Path:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "execution_count": count, "outputs": outputs},
    ]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path: Path) -> None:
    picture = base64.b64encode(b"picture").decode()
    shown = {"output_type": "display_data", "data": {"image/png": picture, "text/plain": ["<F>"]}}
    said = {"output_type": "stream", "text": ["two\n", "lines\n"]}
    pages = make_notebook_pages(write_notebook(tmp_path / "a.ipynb", 1, said, shown))
    assert pages["a-1.png"] == b"picture"
    text = str(pages["a.md"])
    assert text.startswith("# Title\ntext\n\n[This page as a notebook](a.ipynb).")
    assert "```python\n1 + 1\n```\n\n```text\ntwo\nlines\n```\n\n![what the cell draws]" in text
    assert "<F>" not in text


def test_a_notebook_that_failed_or_was_not_executed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a cell was not executed: 1"):
        make_notebook_pages(write_notebook(tmp_path / "a.ipynb", None))
    failed = {"output_type": "error", "evalue": "no such file"}
    with pytest.raises(ValueError, match="a cell raised no such file"):
        make_notebook_pages(write_notebook(tmp_path / "a.ipynb", 1, failed))


def test_text_is_not_taken_for_markup() -> None:
    assert escape("a*.tar <x> [a](b) c|d") == r"a\*.tar \<x> \[a](b) c\|d"
    assert escape("`data.*`: *") == r"`data.*`: \*"
