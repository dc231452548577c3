"""The script of k-NN and the linear probe."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP
from tqdm import tqdm

import finetune.frozen.opening
import finetune.probe
import pretrain.evaluation.features
from data.images.transforms import evaluation_crop
from data.settings import UserError
from finetune.load import load_classifier
from pretrain.evaluation.classifiers import Linear
from pretrain.evaluation.features import Features
from tests.launching import run_ranks

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def arguments(quick_probe: list[str]) -> list[str]:
    """Name the arguments of a quick measure in short."""
    return quick_probe


def result(folder: Path) -> dict[str, Any]:
    """Read a result without the time that it took."""
    read = json.loads((folder / "result.json").read_text())
    assert read.pop("seconds") > 0
    return read


def test_retrieval_searches_the_training_images(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """torchmetrics, on the features of the file."""
    finetune.probe.main([*arguments, "probe.layers=[1]", "probe.heads=[retrieval]"])
    read = result(tmp_path / "out")
    train, val = (
        load_file(next(tmp_path.glob(f"out/features/{key}-*"))) for key in ("train", "val")
    )
    gallery, queries = (normalize(split["1/average"]) for split in (train, val))
    is_right = (val["labels"][:, None] == train["labels"]).flatten()
    indexes = torch.arange(len(queries))[:, None].expand(-1, len(gallery)).flatten()
    whole = (2 + queries @ gallery.T).flatten(), is_right, indexes  # it takes no scores below 0
    assert read["accuracy/map"] == pytest.approx(float(RetrievalMAP()(*whole)), abs=1e-5)
    for at in (1, 5, 10):
        expected = float(RetrievalHitRate(top_k=at)(*whole))
        assert read[f"accuracy/recall@{at}"] == pytest.approx(expected, abs=1e-5)
    assert "| layer | pooling | recall@1 | recall@5 | recall@10 | map" in capsys.readouterr().out
    assert not {"penalty", "accuracy/knn_top1"} & set(read)


def test_the_figures_are_those_of_the_kept_features(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """scikit-learn, on the features of the file, at the penalty that was chosen."""
    finetune.probe.main([*arguments, "probe.layers=[1]", "probe.neighbours=5"])
    read = result(tmp_path / "out")
    train, val = (
        load_file(next(tmp_path.glob(f"out/features/{key}-*"))) for key in ("train", "val")
    )
    scale = train["1/average"].mean(0), train["1/average"].std(0, correction=0)
    x, new = (((s["1/average"] - scale[0]) / scale[1]).double().numpy() for s in (train, val))
    theirs = LogisticRegression(C=1 / (len(x) * read["penalty"]), tol=1e-8, max_iter=10_000)
    theirs.fit(x, train["labels"].numpy())
    accuracy = theirs.score(new, val["labels"].numpy())
    assert read["accuracy/linear_top1"] == pytest.approx(accuracy)
    assert read["accuracy/linear_top5"] == read["accuracy/knn_top5"] == 1  # of three classes
    assert torch.equal(train["positions"], torch.tensor([n for n in range(36) if n != 22]))
    table = capsys.readouterr().out.splitlines()
    header, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:5:2])
    shown = dict(zip(header, row, strict=True))
    assert shown["penalty"] == f"{read['penalty']:g}"
    assert shown["knn_top1"] == f"{read['accuracy/knn_top1']:.2%}"


@pytest.mark.parametrize(
    ("more", "layer"),
    [
        (["probe.layers=[2]"], 2),
        (["probe.layers=[1]", "encoder.position=sincos_2d"], 1),
        (["probe.layers=[1]", "encoder.position=learned_2d", "encoder.position_at=every_layer"], 1),
    ],
)
def test_the_probe_is_left_as_a_classifier(
    tmp_path: Path,
    shards: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    layer: int,
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")  # the fourth class occurs in no sample
    finetune.probe.main([*arguments, *more, f"data.classes={names}"])
    read, folder = result(tmp_path / "out"), tmp_path / "out/classifier"
    assert f"{folder} IMAGES\n" in capsys.readouterr().out
    model = load_classifier(folder)
    assert model.class_names == ["ant", "bee", "cat", "dog"]
    assert len(model.encoder.blocks) == layer

    train, val = (
        load_file(next(tmp_path.glob(f"out/features/{key}-*"))) for key in ("train", "val")
    )
    view = f"{layer}/average"
    own = Features(train[view], train["labels"], train["positions"])
    expected = Linear.fit(own, read["penalty"])(val[view])  # float64 (10, 3)
    images = [read_image(shards / "val-0.tar", number) for number in range(10)]
    crops = torch.stack([evaluation_crop(image, (16, 16), 3) for image in images])
    with torch.no_grad():
        logits = model.logits(crops)
    assert (logits[:, :3] - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (logits[:, 3] < logits[:, :3].min() - 50).all()
    if "encoder.position_at=every_layer" not in more:
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            alone = theirs(model.normalise(crops))
        assert torch.allclose(alone, logits, rtol=1e-4, atol=1e-3)
    accuracy = (logits.argmax(1) == val["labels"]).double().mean()
    assert accuracy == pytest.approx(read["accuracy/linear_top1"])


def read_image(shard: Path, number: int) -> bytes:
    with tarfile.open(shard) as tar:
        name = [name for name in tar.getnames() if name.endswith(".png")][number]
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


def test_the_classifier_is_of_the_layer_that_the_tenth_chooses(
    tmp_path: Path, arguments: list[str]
) -> None:
    told = [*arguments, "probe.layers=all", "probe.poolings=[both,average]"]
    for _ in range(2):  # the second replaces what the first left
        finetune.probe.main(told)
        AcceleratorState._reset_state(reset_partial_state=True)
    cells = [cell for cell in result(tmp_path / "out")["cells"] if cell["pooling"] == "average"]
    best = min(cells, key=lambda cell: cell["held_out_loss"])
    saved = load_classifier(tmp_path / "out/classifier")
    assert len(saved.encoder.blocks) == best["layer"]
    finetune.probe.main([*arguments, "probe.poolings=[both]", f"probe.dir={tmp_path}/both"])
    assert not (tmp_path / "both/classifier").exists()


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_terminal_shows_how_far_it_is(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*values: Any, **options: Any) -> Any:
        return tqdm(*values, **options | {"delay": 0, "mininterval": 0})

    for module in (pretrain.evaluation.features, finetune.frozen.opening):
        monkeypatch.setattr(module, "tqdm", at_once)
    for is_terminal in (True, False):
        stream = Terminal() if is_terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        AcceleratorState._reset_state(reset_partial_state=True)
        finetune.probe.main(
            [*arguments, "probe.layers=all", f"probe.features={tmp_path}/{is_terminal}"]
        )
        said = stream.getvalue()
        assert ("features of data.train: 100%|##########| 9/9 [" in said) == is_terminal
        # k-NN, four penalties and the last fit, of two layers; what is not needed is counted
        assert ("fits: 100%|##########| 12/12 [" in said) == is_terminal


def test_several_ranks_give_the_same_figures(tmp_path: Path, arguments: list[str]) -> None:
    arguments = [*arguments, "probe.layers=all", "probe.penalties=[0.01,0.1]"]
    finetune.probe.main(arguments)
    for world in (2, 3):
        more = [*arguments, f"probe.dir={tmp_path}/{world}"]
        run_ranks(more, world, tmp_path / "logs", script="finetune.probe")
        assert result(tmp_path / str(world)) == result(tmp_path / "out")


def test_accelerate_launches_it_from_any_folder(tmp_path: Path, arguments: list[str]) -> None:
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu"]
    launcher += ["--num_processes=1", "--num_machines=1", "--mixed_precision=no"]
    launcher += ["--dynamo_backend=no", str(ROOT / "finetune/probe.py")]
    done = subprocess.run(
        [*launcher, *arguments],
        cwd="/",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| layer | pooling |" in done.stdout
    assert (tmp_path / "out/table.md").read_text() in done.stdout


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("probe.neighbours=40", "probe.neighbours=40 is more than the 36 images of data.train"),
        ("probe.neighbours=0", "probe.neighbours=0 must be above 0"),
        ("probe.penalties=[]", "probe.penalties=[] must be numbers above 0; try [1e-3, 1e-2]"),
        ("probe.penalties=[0]", "probe.penalties=[0.0] must be numbers above 0; try [1e-3, 1e-2]"),
        (
            "data.fraction=0.5",
            "probe.neighbours=20 is more than the 18 images of data.train (data.fr",
        ),
        (
            "probe.shots=[1]",
            "probe.shots is a key of finetune/fewshot.py (fewshot.shots), not of this command",
        ),
        ("probe.layer=1", "probe.layer is no key; did you mean probe.layers?"),
        ("probe.layers=[9]", "probe.layers=9 is not in 1..2, the encoder's blocks"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], argument: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        finetune.probe.main([*arguments, argument])
    assert str(caught.value).startswith(text)


def test_values_at_the_edge_of_what_was_tried_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        finetune.frozen.opening.say_edges("probe.rates", [1.0, 2.0, 3.0], [3.0, 2.0, 3.0])
        finetune.frozen.opening.say_edges("probe.decays", [1.0], [1.0])
        finetune.frozen.opening.say_edges("probe.penalties", [1.0, 2.0], [])
    assert caplog.messages == [
        "probe.rates: the highest, 3, was chosen for 2 of 3 classifiers; values beyond it may do "
        "better"
    ]
