"""scripts/measure.py: what can be said without labels, the same on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import scripts.measure
from data.settings import UserError
from pretrain import api
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.launching import run_ranks

SHORT = ["--workers", "0", "--batch-size", "4", "--crops", "2"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measure") / "encoder"
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    torch.manual_seed(1)  # not as the untrained one is drawn
    save_encoder(make_encoder(config, (16, 16)), folder)
    return folder


@pytest.fixture(scope="module")
def arguments(encoder: Path, shards: Path) -> list[str]:
    return [str(encoder), f"{shards}/train-*.tar", *SHORT]


def read(output: str) -> dict[str, Any]:
    """Read the JSON among what ranks have said."""
    return json.loads(output[output.index("{\n") : output.rindex("}") + 1])


def test_any_number_of_ranks_gives_the_same_numbers(
    tmp_path: Path, arguments: list[str], encoder: Path, shards: Path
) -> None:
    outputs = [
        run_ranks([*arguments, "--json"], world, tmp_path / str(world), script="scripts.measure")
        for world in (1, 2, 3)
    ]
    one, *others = map(read, outputs)
    assert all(other == one for other in others)
    assert all(output.count("images: 1 of 36 images cannot be used") == 1 for output in outputs)
    assert (one["num_images"], one["num_bad"], one["crops"]) == (35, 1, 2)
    assert [(cell["layer"], cell["pooling"]) for cell in one["cells"]] == [
        (layer, pooling) for layer in (1, 2) for pooling in ("average", "patches")
    ]
    options = {"workers": 0, "batch_size": 4, "crops": 2}
    assert api.measure(encoder, f"{shards}/train-*.tar", **options).cells == one["cells"]


def test_the_table_has_a_row_a_layer_and_pooling(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scripts.measure.main([*arguments, "--layers", "2", "--pooling", "class"])
    title, _, header, _, pooled, patches = capsys.readouterr().out.splitlines()
    assert title.endswith(f": 35 images of {arguments[1]}, features of 32 dimensions")
    names = ["layer", "pooling", "rankme", "rankme_centred", "alpha", "dead", "lidar"]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == names
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (pooled, patches)]
    assert [row[:2] for row in rows] == [["2", "class"], ["2", "patches"]]
    assert float(rows[0][-1]) > 1
    assert rows[1][-1] == ""


def test_the_same_encoder_untrained_is_another_each_time_the_same(
    arguments: list[str], encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables: list[list[str]] = []
    for more in ([], ["--untrained"], ["--untrained"]):
        scripts.measure.main([*arguments, "--crops", "0", "--layers", "2", *more])
        tables.append(capsys.readouterr().out.splitlines())
    as_it_is, first, second = tables
    assert first == second
    assert first[0].startswith(f"{encoder} untrained: 35 images")
    assert first[4:] != as_it_is[4:]


@pytest.mark.parametrize("layers", ["0", "1,x", "", "1,-2"])
def test_layers_that_are_no_numbers_are_refused(arguments: list[str], layers: str) -> None:
    with pytest.raises(UserError, match=f"--layers={layers} is neither all nor numbers of blocks"):
        scripts.measure.main([*arguments, f"--layers={layers}"])
