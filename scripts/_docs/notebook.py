"""A notebook as a page of the site: its cells, and the outputs that are stored in it."""

import base64
import json
from pathlib import Path
from typing import Any


def make_notebook_pages(notebook: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook, and its pictures, by their paths on the site.

    Raises:
        ValueError: A cell of code was not executed, or raised an error.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    pictures: dict[str, str | bytes] = {}
    parts = [_write_cell(cell, notebook, pictures) for cell in cells]
    title, *rest = parts
    link = f"[This page as a notebook]({notebook.name})."
    return {f"{notebook.stem}.md": "\n\n".join([title, link, *rest]) + "\n", **pictures}


def _write_cell(cell: Any, notebook: Path, pictures: dict[str, str | bytes]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    if cell["execution_count"] is None:
        raise ValueError(f"{notebook}: a cell was not executed: {source}")
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            raise ValueError(f"{notebook}: a cell raised {output['evalue']}")
        data = output.get("data", {})
        if "image/png" in data:
            path = f"{notebook.stem}-{len(pictures) + 1}.png"
            pictures[path] = base64.b64decode(data["image/png"])
            parts.append(f"![what the cell draws]({path})")
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
