"""Predictions: those of the validation, for files and folders, as a table and as JSON."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune.load
import finetune.run
import scripts.predict
from data.settings import UserError
from finetune.config import HeadConfig
from finetune.head import Classifier
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.conftest import NUM_CLASSES, make_sample, no_root_rights

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_finetune: list[str]) -> Path:
    """Fine-tune for some steps; the names of the classes are given."""
    folder = tmp_path_factory.mktemp("finetuned")
    names = folder / "names.txt"
    names.write_text("cat\ndog\nred panda\n")
    more = ["optim.lr=0.1", f"data.classes={names}", f"run.dir={folder}/run"]
    finetune.run.main([*tiny_finetune, *more])
    return folder / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the validation images as files, in a folder a class: not in the order of the shard."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(100, 110):
        sample = make_sample(number)
        path = folder / f"is-{sample.label}/{sample.key}.{sample.extension}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample.data)
    (folder / "is-0/notes.txt").write_text("not an image, and passed over")
    return folder


def predict(capsys: Capture, *arguments: object) -> list[dict[str, Any]]:
    scripts.predict.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def save(folder: Path, *, is_multi_label: bool = False) -> Classifier:
    """Save a classifier of random weights as a run's folder does."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    encoder = make_encoder(config, (16, 32))
    names = [f"class {number}" for number in range(7)]
    model = Classifier(encoder, names, HeadConfig(), is_multi_label=is_multi_label).eval()
    torch.nn.init.normal_(model.last_layer.weight)
    save_encoder(encoder, folder)
    return model


# ---------------------------------------------------------------- the right answers


def test_the_answers_are_those_of_the_validation(run: Path, images: Path, capsys: Capture) -> None:
    answers = predict(capsys, run, images, "--batch-size", 3)
    assert [answer["path"] for answer in answers] == sorted(map(str, images.glob("*/*.png")))
    names = ["cat", "dog", "red panda"]
    labels = [int(Path(answer["path"]).parent.name[-1]) for answer in answers]
    right = [a["classes"][0]["name"] == names[k] for a, k in zip(answers, labels, strict=True)]
    result = json.loads((run / "result.json").read_text())
    assert sum(right) / len(right) == result["accuracy"]
    assert len({answer["classes"][0]["name"] for answer in answers}) > 1
    loss = 0.0
    for answer, label in zip(answers, labels, strict=True):
        assert len(answer["classes"]) == NUM_CLASSES  # of five that are asked for
        probability = {each["name"]: each["probability"] for each in answer["classes"]}
        assert sum(probability.values()) == pytest.approx(1)
        assert list(probability.values()) == sorted(probability.values(), reverse=True)
        loss -= torch.tensor(probability[names[label]]).log().item() / len(answers)
    assert loss == pytest.approx(result["loss"], rel=1e-5)


def test_the_batch_size_changes_nothing(run: Path, images: Path, capsys: Capture) -> None:
    one, many = (predict(capsys, run, images, "--batch-size", size) for size in (1, 64))
    for left, right in zip(one, many, strict=True):
        assert left["path"] == right["path"]
        for each, other in zip(left["classes"], right["classes"], strict=True):
            assert each["name"] == other["name"]
            assert each["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_a_list_of_paths(run: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    """README names it for each command that takes images."""
    files = sorted(images.rglob("*.png"))
    (tmp_path / "some.txt").write_text("".join(f"{file}\n" for file in files[:3]))
    assert predict(capsys, run, tmp_path / "some.txt") == predict(capsys, run, *files[:3])
    (tmp_path / "gone.txt").write_text("gone.png\n")
    with pytest.raises(UserError, match=r"IMAGE_OR_FOLDER=.*gone.txt: 1 of 1 file is not there"):
        predict(capsys, run, tmp_path / "gone.txt")


def test_a_timm_folder(tmp_path: Path, images: Path, capsys: Capture) -> None:
    save(tmp_path / "model")
    (answer,) = predict(capsys, tmp_path / "model", images / "is-1/100.png", "--top", 2)
    assert len(answer["classes"]) == 2
    assert all(re.fullmatch(r"class \d", each["name"]) for each in answer["classes"])


def test_many_labels_are_shown_from_a_threshold_on(
    tmp_path: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path / "model", is_multi_label=True)

    def load(_: str) -> Classifier:
        return model

    monkeypatch.setattr(finetune.load, "load_classifier", load)
    every = predict(capsys, "model", images, "--top", 7)
    some = predict(capsys, "model", images, "--threshold", 0.6)
    for answer, shown in zip(every, some, strict=True):
        assert sum(each["probability"] for each in answer["classes"]) != pytest.approx(1, abs=0.1)
        chosen = [each for each in answer["classes"] if each["probability"] >= 0.6]
        assert shown["classes"] == chosen
    assert {len(answer["classes"]) for answer in some} != {7}
    scripts.predict.main(["model", str(images), "--threshold", "1"])
    assert capsys.readouterr().out.splitlines()[1].endswith("  -")


# ---------------------------------------------------------------- the table


def test_the_table(run: Path, images: Path, capsys: Capture) -> None:
    scripts.predict.main([str(run), str(images), str(images / "is-0/102.png")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 11
    assert rows[-1] in rows[:-1]  # named twice, answered twice
    place = header.index("class ")
    for row in rows:
        assert row[place - 2 : place] == "  "
        assert row[:place].strip().endswith(".png")
        assert re.fullmatch(
            r"(cat|dog|red panda) +\d+\.\d\d%  [a-z ]+ \d+\.\d\d%, [a-z ]+ \d+\.\d\d%", row[place:]
        )
    ends = {row.index("%") for row in rows}
    assert ends == {header.index("probability") + len("probability") - 1}


# ---------------------------------------------------------------- what cannot be read


def test_what_cannot_be_read_is_named_and_the_others_answered(
    run: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes((images / "is-1/100.png").read_bytes())
    (tmp_path / "d.md").write_text("named, so it counts")
    (tmp_path / "e.jpg").symlink_to("nothing")
    os.mkfifo(tmp_path / "f.jpg")
    named_alone = ("none.png", "d.md", "f.jpg")
    arguments = [str(run), str(tmp_path), *(f"{tmp_path}/{name}" for name in named_alone)]
    for more in ([], ["--json", "--batch-size", "1"]):
        with pytest.raises(SystemExit) as ended:
            scripts.predict.main([*arguments, *more])
        assert ended.value.code == 1
        said = capsys.readouterr()
        first, *lines = said.err.splitlines()
        assert first == (
            f"{tmp_path}: passed over: 1 file that is no image (1 .md: d.md); "
            "1 pipe, socket or device (f.jpg)"
        )
        bad = ("a.png", "b.png", "e.jpg", *named_alone)
        assert [line.split(": ")[0] for line in lines] == [f"{tmp_path}/{name}" for name in bad]
        assert "f.jpg: is a pipe, a socket or a device, and no file" in said.err
        assert "none.png: No such file or directory" in said.err
        assert f"{tmp_path}/c.png" in said.out
        if more:
            answers = json.loads(said.out)
            is_bad = ["error" in answer for answer in answers]
            assert is_bad == [True, True, False, True, True, True, True]
            assert answers[0]["error"] == "no image format that Pillow knows"


class _Closed(io.StringIO):
    """A pipe whose reader has left."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_enough(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", _Closed(file.fileno()))
        with pytest.raises(SystemExit):
            scripts.predict.main([str(run), str(images)])


# ---------------------------------------------------------------- mistakes


def test_nothing_found(run: Path, tmp_path: Path) -> None:
    for text in ("there is no file", r"1 file that is no image \(1 .svg: a.svg\)"):
        with pytest.raises(UserError, match=rf"{tmp_path} holds no image that can be read: {text}"):
            scripts.predict.main([str(run), str(tmp_path)])
        (tmp_path / "a.svg").write_text("none")


def test_what_may_not_be_read(
    run: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and the others are answered; a folder that is closed itself is a mistake."""
    model = finetune.load.load_classifier(str(run))

    def load(_: str) -> Classifier:
        return model

    monkeypatch.setattr(finetune.load, "load_classifier", load)
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    for name in ("all/a.png", "all/b.png", "all/closed/c.png"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(images / "is-1/100.png", name)
    Path("all/b.png").chmod(0)
    Path("all/closed").chmod(0)
    with no_root_rights(), pytest.raises(SystemExit) as ended:
        scripts.predict.main(["run", "all"])
    said = capsys.readouterr()
    assert ended.value.code == 1
    first, second = said.err.splitlines()
    assert first.startswith("all/b.png: Permission denied")
    assert second.startswith("all/closed: Permission denied")
    assert "all/a.png" in said.out
    text = (
        r"all/closed holds no image that can be read: 1 place that .* \(closed: Permission denied\)"
    )
    with no_root_rights(), pytest.raises(UserError, match=text):
        scripts.predict.main(["run", "all/closed"])
    Path("all/closed").chmod(0o755)


def test_names_of_any_bytes(run: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    content = (images / "is-1/100.png").read_bytes()
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(content)
    (tmp_path / os.fsdecode(b"d\xe9.png")).write_bytes(b"no image")
    (tmp_path / "UPPER.PnG").write_bytes(content)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit):
            scripts.predict.main([str(run), str(tmp_path), *more])
        said = capsys.readouterr()
        assert rf"{tmp_path}/d\xe9.png: no image" in said.err
        assert "UPPER.PnG" in said.out
        if more:
            assert json.loads(said.out)[1]["path"] == str(tmp_path / os.fsdecode(b"caf\xe9.png"))
        else:
            assert rf"{tmp_path}/caf\xe9.png " in said.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top", "0"], "argument --top: 0 is no whole number above 0; see --help"),
        (["--top", "x"], "argument --top: x is no whole number above 0; see --help"),
        (["--batch-size", "0"], "argument --batch-size: 0 is no whole number above 0"),
        (["--threshold", "2"], r"--threshold=2.0 is not in \[0, 1\]"),
        (["--threshold", "0.5"], "--threshold=0.5 is for classifiers of many labels"),
    ],
)
def test_mistakes(run: Path, images: Path, arguments: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        scripts.predict.main([str(run), str(images), *arguments])


def test_a_folder_without_a_classifier_is_one_line(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/predict.py"), str(tmp_path), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
