"""A run's kind is told by its configuration's groups of keys."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.records.kinds import Kind, kind_of, kind_of_run
from pretrain.vilt.config import ViltConfig
from scripts._benchmark.alternatives.config import AlternativePretrainConfig

KINDS = {
    PretrainConfig: Kind.PRETRAINING,
    ViltConfig: Kind.IMAGE_TEXT,
    ViltFinetuneConfig: Kind.IMAGE_TEXT_TUNING,
    FinetuneConfig: Kind.FINE_TUNING,
    AlternativePretrainConfig: Kind.ALTERNATIVE,
}


@pytest.mark.parametrize(("config", "kind"), KINDS.items(), ids=lambda value: str(value))
def test_each_configuration_has_its_kind(config: Any, kind: Kind) -> None:
    assert kind_of({group.name for group in fields(config)}) is kind


def test_a_folder_without_a_run_has_none(tmp_path: Path) -> None:
    assert kind_of_run(tmp_path) is None
    (tmp_path / "config.yaml").write_text("a: 1")
    assert kind_of_run(tmp_path) is None
