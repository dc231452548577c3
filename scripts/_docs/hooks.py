"""Hooks of the site's builder: they add the pages made of code and configurations.

`make docs` runs `python -m mkdocs build` in the checkout, so that the code documented is this code.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts._docs.drawing import draw
from scripts._docs.notebook import make_notebook_pages
from scripts._docs.recipes import make_recipes_page
from scripts._docs.reference import make_key_pages, make_scripts_page
from scripts._docs.rooms import find_arrows, make_files_tables

ROOT = Path(__file__).resolve().parents[2]
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put the pages of each folder of the nav in its place."""
    pages: dict[str, str | bytes] = dict(make_key_pages(ROOT))
    pages["reference/scripts.md"] = make_scripts_page(ROOT / "scripts")
    pages["results/recipes.md"] = make_recipes_page(ROOT / "configs")
    pages["log/index.md"] = _make_log_index(Path(config.docs_dir) / "log")
    pages.update(make_notebook_pages(Path(config.docs_dir) / "tutorial.ipynb"))
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    config.nav = [_expand(entry, files) for entry in config.nav or []]
    return files


def _make_log_index(folder: Path) -> str:
    """Return the list of the log's entries, newest first, by the headings that they begin with."""
    lines = ["# Log", "", "What was tried and found, negative results too, newest first.", ""]
    for path in sorted(folder.glob("*.md"), reverse=True):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- {path.name[:10]}: [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def _expand(entry: Any, files: Files) -> Any:
    """Put all pages of a folder in place of the folder: of `Log: log/`, newest first."""
    [(title, value)] = entry.items()
    if not isinstance(value, str) or not value.endswith("/"):
        return entry
    pages = [page.src_uri for page in files.documentation_pages()]
    index = f"{value}index.md"
    rest = sorted(page for page in pages if page.startswith(value) and page != index)
    return {title: [index, *(reversed(rest) if title == "Log" else rest)]}


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the drawings of the rooms, and the tables of their files, where a page asks for them."""
    if page.file.src_uri != "design/rooms.md":
        return markdown
    parts = {
        "<!-- rooms: pretrain -->": draw(find_arrows(ROOT, "pretrain")),
        "<!-- rooms: data -->": draw(find_arrows(ROOT, "data")),
        "<!-- rooms: files -->": make_files_tables(ROOT),
    }
    for mark, text in parts.items():
        if mark not in markdown:
            raise PluginError(f"{page.file.src_uri} lacks the line {mark}")
        markdown = markdown.replace(mark, text)
    return markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would fetch anything from elsewhere.

    Raises:
        PluginError: A page names a script, style or picture of another host.
    """
    for path in Path(config.site_dir).rglob("*.html"):
        fetched = _FETCHED.search(path.read_text(encoding="utf-8"))
        if fetched:
            raise PluginError(f"{path} asks another host: {fetched[0]}")
