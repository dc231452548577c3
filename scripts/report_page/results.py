"""Results that lie in a run's folder: few-shot accuracy, and fine-tuning from it."""

import re
from pathlib import Path
from typing import Any

from scripts.report_page.findings import percent
from scripts.report_page.history import read_json
from scripts.report_page.page import section, table

_FEW_SHOT = {"pretrained": "fewshot/result.json", "untrained": "fewshot-untrained/result.json"}
_FINE_TUNING = ("finetune", "scratch")  # how their folders' names begin
_ACCURACIES = {
    "accuracy": "Top 1",
    "accuracy_top5": "Top 5",
    "accuracy_balanced": "Mean over classes",
}


def few_shot(folder: Path) -> str:
    """Compare the pretrained with the untrained encoder; an empty text without a result."""
    results = {
        name: read_json(folder / file)
        for name, file in _FEW_SHOT.items()
        if (folder / file).is_file()
    }
    found = [re.fullmatch(r"accuracy/(\d+)shot", key) for r in results.values() for key in r]
    shots = sorted({int(match[1]) for match in found if match})
    rows = [[name, *(_shot(result, num) for num in shots)] for name, result in results.items()]
    note = (
        "Accuracy of a ridge regression on frozen features, by labelled images a class: mean ± "
        "deviation over choices of those images. Pretraining helped where it beats untrained."
    )
    body = table(["Encoder", *(f"{num} a class" for num in shots)], rows)
    return section("Few-shot accuracy", body, note) if rows else ""


def _shot(result: dict[str, Any], num: int) -> str:
    mean = result.get(f"accuracy/{num}shot")
    deviation = result.get(f"deviation/{num}shot", 0)
    return "" if mean is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def fine_tuning(folder: Path) -> str:
    """Show what fine-tuning and training from scratch gave; an empty text without a result."""
    paths = [path for kind in _FINE_TUNING for path in folder.glob(f"{kind}*/result.json")]
    rows = [_row(path.parent.name, read_json(path)) for path in sorted(paths)]
    header = ["Run", "Started from", *_ACCURACIES.values(), "Steps"]
    note = "Validation accuracy at the last step; a run started from 'none' is from scratch."
    return section("Fine-tuning", table(header, rows), note) if rows else ""


def _row(name: str, result: dict[str, Any]) -> list[str]:
    accuracies = (percent(result[key]) if key in result else "" for key in _ACCURACIES)
    return [name, str(result.get("encoder.init", "")), *accuracies, str(result.get("steps", ""))]
