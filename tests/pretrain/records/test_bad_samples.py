"""Samples that cannot be used: named once, judged over real samples; and nothing ends with NaN."""

import io
import math
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune.fewshot
import finetune.run
import pretrain.run
import scripts.export
import scripts.predict
import scripts.report
import scripts.verify_run
from data.batch import Batch, LedgerEntry
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from pretrain.records.bad_samples import BadSamples, Unusable
from pretrain.records.logs import read_records
from pretrain.training.contract import Output
from pretrain.training.trainer import Trainer
from tests.conftest import make_png
from tests.launching import Ranks

Write = Callable[[str, int, Sequence[int]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes a shard of so many images, of which some are cut."""

    def shard(name: str, num: int, broken: Sequence[int]) -> Path:
        first = 300 * len(name)  # other names, other images
        contents = [make_png(first + n)[: 60 if n in broken else None] for n in range(num)]
        images = [
            ImageFile(f"{n:03d}", "png", content, n % 3) for n, content in enumerate(contents)
        ]
        write_shard(tmp_path / name, images)
        return tmp_path / name

    return shard


@pytest.fixture
def told(tmp_path: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of 3 steps of 8 images, of either kind of run."""
    return [
        *encoder,
        "data.workers=0",
        "optim.steps=3",
        "optim.batch_size=8",
        "optim.warmup_steps=1",
        "run.threads=1",
        f"run.dir={tmp_path}/run",
    ]


def stop(main: Any, arguments: list[str]) -> str:
    with pytest.raises(RunStopped) as caught:
        main(arguments)
    assert caught.value.status == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- training samples


@pytest.mark.parametrize(
    ("num", "broken", "batch_size", "more", "said"),
    [
        # 20 of 40 in a batch of 1,000: padding is no sample
        (40, range(20), 1000, ["optim.steps=1"], "50.0% of the samples cannot be used (20 of 40)"),
        (40, range(20), 1000, ["data.max_bad_ratio=0.4"], "50.0% of the samples cannot be used"),
        # less than an epoch
        (200, range(200), 8, [], "100.0% of the samples cannot be used (24 of 24)"),
        (200, range(200), 8, ["data.max_bad_ratio=1"], "100.0% of the samples cannot be used"),
        # as streams are read
        (40, range(40), 8, ["data.read=sequential"], "100.0% of the samples cannot be used (24 of"),
    ],
)
def test_bad_samples_are_judged_over_real_ones(
    write: Write,
    tmp_path: Path,
    told: list[str],
    num: int,
    broken: range,
    batch_size: int,
    more: list[str],
    said: str,
) -> None:
    told += [f"data.shards={write('train.tar', num, broken)}", f"optim.batch_size={batch_size}"]
    assert said in stop(pretrain.run.main, [*told, *more])
    assert not (tmp_path / "run/encoder").exists()
    assert not (tmp_path / "run/checkpoints").exists()


def test_what_will_be_too_much_is_stopped_at_the_first_commit(
    write: Write, tmp_path: Path, told: list[str]
) -> None:
    told += [f"data.shards={write('train.tar', 200, range(200))}", "optim.steps=20"]
    said = stop(pretrain.run.main, [*told, "run.checkpoint_every=2"])
    assert "100.0% of the samples cannot be used (16 of 16)" in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_ratio_that_is_borne_is_borne(write: Write, tmp_path: Path, told: list[str]) -> None:
    told += [f"data.shards={write('train.tar', 24, range(12))}", "data.max_bad_ratio=0.5"]
    pretrain.run.main(told)
    assert (tmp_path / "run/encoder").exists()
    assert len(read_records(tmp_path / "run/bad_samples.jsonl")) == 12


def test_a_step_without_a_usable_image_logs_no_loss(
    write: Write, tmp_path: Path, told: list[str]
) -> None:
    """Where a batch holds one image, and it is broken, nothing is known of its loss."""
    told += [f"data.shards={write('train.tar', 10, [4])}", "data.max_bad_ratio=0.5"]
    pretrain.run.main([*told, "optim.batch_size=1", "optim.steps=10", "run.log_every=1"])
    records = read_records(tmp_path / "run/metrics.jsonl")
    [bad] = read_records(tmp_path / "run/bad_samples.jsonl")
    assert [r["step"] for r in records if "train/loss" not in r] == [bad["step"]]
    assert all(value is not None for record in records for value in record.values())


def test_two_ranks_judge_as_one(write: Write, tmp_path: Path, told: list[str]) -> None:
    told += [f"data.shards={write('train.tar', 200, range(0, 200, 2))}", "optim.steps=5"]
    alone = stop(pretrain.run.main, told)
    with Ranks([*told, f"run.dir={tmp_path}/two"], 2, tmp_path / "logs") as ranks:
        assert ranks.wait() == [1, 1]
        assert alone.replace("run/", "two/") in ranks.output
    one, two = (read_records(tmp_path / run / "bad_samples.jsonl") for run in ("run", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("num_bad", "seen", "epoch", "run", "is_stopped"),
    [
        (5, 100, 200, 400, False),  # not enough yet
        (6, 100, 100, 400, True),
        (5, 100, 100, 400, False),
        (6, 100, 200, 100, True),  # the last step
        (60, 1000, 10**9, 10**9, True),
        (50, 1000, 10**9, 10**9, False),
        (21, 50, 200, 400, True),  # more than all of the run may have
        (20, 50, 200, 400, False),
    ],
)
def test_when_data_is_judged(
    tmp_path: Path, num_bad: int, seen: int, epoch: int, run: int, *, is_stopped: bool
) -> None:
    ledger = BadSamples(tmp_path)
    ledger.num_bad = num_bad
    if is_stopped:
        with pytest.raises(RunStopped, match=rf"\({num_bad} of {seen}\), more than data.max_bad"):
            ledger.judge(seen, epoch, run, 0.05)
    else:
        ledger.judge(seen, epoch, run, 0.05)


# ---------------------------------------------------------------- what it is measured on


def test_bad_validation_samples_are_named_once(
    write: Write, tmp_path: Path, told: list[str]
) -> None:
    """Also by a run that is resumed; and they are no training samples for verify_run."""
    train, val = write("train.tar", 24, [5]), write("val.tar", 10, [3, 4])
    told += [f"data.shards={train}", f"data.val_shards={val}", "data.max_bad_ratio=0.2"]
    told += ["data.trace=true", "run.eval_every=3", "run.checkpoint_every=3", "run.log_every=3"]
    pretrain.run.main([*told, "optim.steps=6"])
    ledger = tmp_path / "run/bad_samples.jsonl"
    lines = read_records(ledger)
    found = [(r["step"], r["key"]) for r in lines if r.get("split") == "data.val_shards"]
    assert found == [(3, "003"), (3, "004")]
    assert [r["step"] for r in lines] == sorted(r["step"] for r in lines)
    assert [r["key"] for r in lines if "split" not in r] == ["005", "005"]  # two epochs
    scripts.verify_run.main([str(tmp_path / "run")])

    content = ledger.read_bytes()
    (tmp_path / "run/checkpoints/step-00000006/manifest.json").unlink()
    pretrain.run.main([*told, "optim.steps=6"])
    assert ledger.read_bytes() == content


@pytest.mark.parametrize("more", [[], ["data.max_bad_ratio=1"]])
def test_validation_images_that_are_all_broken_stop_a_run(
    write: Write, tmp_path: Path, told: list[str], more: list[str]
) -> None:
    good, broken = write("good.tar", 24, []), write("broken.tar", 10, range(10))
    pretraining = [*told, f"data.shards={good}", f"data.val_shards={broken}", *more]
    text = "100.0% of the samples of data.val_shards cannot be used (10 of 10)"
    assert text in stop(pretrain.run.main, pretraining)
    assert (tmp_path / "run/encoder").exists()  # of all steps: the training images were sound
    assert text in stop(pretrain.run.main, pretraining)  # started again
    tuning = [*told, f"data.train={good}", f"data.val={broken}", f"run.dir={tmp_path}/tuned", *more]
    assert "100.0% of the samples of data.val cannot" in stop(finetune.run.main, tuning)
    assert not (tmp_path / "tuned/result.json").exists()


def test_half_of_the_validation_images_are_too_many(
    write: Write, tmp_path: Path, told: list[str]
) -> None:
    """Also where a finished classifier is measured again."""
    good, broken = write("good.tar", 24, []), write("broken.tar", 10, range(5))
    told += [f"data.train={good}", f"data.val={write('val.tar', 10, [])}"]
    finetune.run.main(told)
    written = (tmp_path / "run/result.json").read_bytes()
    said = stop(finetune.run.main, [*told, f"data.val={broken}"])
    assert "50.0% of the samples of data.val cannot be used (5 of 10), more than data.max" in said
    assert (tmp_path / "run/result.json").read_bytes() == written


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_probes_images_are_judged_too(
    write: Write, tmp_path: Path, told: list[str], split: str
) -> None:
    good, broken = write("good.tar", 24, []), write("broken.tar", 24, range(24))
    splits = {"train": good, "val": write("val.tar", 12, [])} | {split: broken}
    told += [f"data.shards={good}", "probe.shots=[1]", "probe.neighbours=3"]
    told += [f"probe.{key}={shard}" for key, shard in splits.items()]
    said = stop(pretrain.run.main, told)
    assert f"100.0% of the samples of probe.{split} cannot be used (24 of 24)" in said
    [*lines] = read_records(tmp_path / "run/bad_samples.jsonl")
    assert {line["split"] for line in lines} == {f"probe.{split}"}


def test_a_split_is_judged_by_the_key() -> None:
    entries = [LedgerEntry(0, 0, "a.tar", "0", "cut")]
    Unusable("data.val", 20, entries).judge(0.05)
    with pytest.raises(RunStopped, match=r"5.3% of the samples of data.val cannot be used \(1 of"):
        Unusable("data.val", 19, entries).judge(0.05)


# ---------------------------------------------------------------- what is no number


def test_a_run_that_diverges_at_its_end_is_not_finished(
    write: Write, tmp_path: Path, told: list[str]
) -> None:
    """Fewer steps than run.max_bad_steps."""
    told += [f"data.shards={write('train.tar', 24, [])}", "optim.lr=1e30", "optim.grad_clip=0"]
    said = stop(pretrain.run.main, told)
    assert "the last step's result is no finite number (train/loss, " in said
    assert not (tmp_path / "run/encoder").exists()


def test_a_last_step_that_alone_is_bad_is_skipped(
    write: Write, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run could never finish, as a resume repeats the step."""
    factors = {7: math.inf}
    forward = Trainer._forward
    calls = iter(range(1000))

    def spoil(trainer: Trainer, batch: Batch) -> Output:
        output = forward(trainer, batch)
        return output._replace(loss=output.loss * factors.get(next(calls), 1.0))

    monkeypatch.setattr(Trainer, "_forward", spoil)
    told += [f"data.shards={write('train.tar', 24, [])}", "optim.steps=8", "optim.warmup_steps=1"]
    pretrain.run.main(told)
    assert (tmp_path / "run/encoder").exists()
    assert {line["step"] for line in read_records(tmp_path / "run/bad_samples.jsonl")} == {8}


def test_a_network_whose_weights_are_no_numbers_measures_nothing(
    write: Write, tmp_path: Path, told: list[str], encoder: list[str]
) -> None:
    good = write("good.tar", 24, [])
    labelled = [f"data.train={good}", f"data.val={write('val.tar', 10, [])}"]
    finetune.run.main([*told, *labelled])
    weights = (tmp_path / "run/encoder/model.safetensors").resolve()
    tensors = load_file(weights)
    save_file(
        {name: torch.full_like(value, math.nan) for name, value in tensors.items()},
        weights,
        {"format": "pt"},
    )
    exported = str(weights.parent)
    fewshot = [f"encoder.init={exported}", *labelled, "data.workers=0", "fewshot.threads=1"]
    fewshot += ["fewshot.shots=[1]", f"fewshot.dir={tmp_path}/shots", encoder[0]]
    said = stop(finetune.fewshot.main, fewshot)
    assert said.startswith("the features of data.train hold what is no finite number")
    assert not (tmp_path / "shots/result.json").exists()
    (tmp_path / "x.png").write_bytes(make_png(0))
    said = stop(scripts.predict.main, [exported, str(tmp_path / "x.png")])
    assert "answers with what is no finite number" in said


# ---------------------------------------------------------------- names that are not UTF-8


@pytest.fixture
def latin1(tmp_path: Path) -> Path:
    """Write a shard whose name and keys are Latin-1, with one broken image of 8."""
    path = tmp_path / os.fsdecode(b"caf\xe9.tar")
    with tarfile.open(path, "w") as tar:
        for number in range(8):
            content = b"no image" if number == 3 else make_png(number)
            member = tarfile.TarInfo(os.fsdecode(b"\xe9%d.png" % number))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("read", ["random", "sequential"])
def test_names_that_are_not_utf8_are_escaped(
    tmp_path: Path, told: list[str], latin1: Path, read: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the ledger, the trace and the log; and verify_run matches them."""
    del latin1
    told += [f"data.shards={tmp_path}/caf*.tar", "data.max_bad_ratio=0.5", f"data.read={read}"]
    pretrain.run.main([*told, "data.trace=true", "optim.steps=4", "run.log_every=2"])
    name = r"caf\xe9.tar"
    ledger = read_records(tmp_path / "run/bad_samples.jsonl")
    assert {(line["shard"], line["key"]) for line in ledger} == {(name, r"\xe93")}
    [trace] = (tmp_path / "run/trace").iterdir()
    keys = {key for record in read_records(trace) for key in record["keys"]}
    assert keys == {rf"{name}/\xe9{number}" for number in range(8) if number != 3}
    assert rf"not used: {name}/\xe93: no image format that Pillow knows" in caplog.messages
    if read == "random":
        scripts.verify_run.main([str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (pretrain.run.main, ["run.dir=r\udce9"]),
        (finetune.run.main, ["data.train=d\udce9/*.tar"]),
        (scripts.verify_run.main, ["r\udce9"]),
        (scripts.predict.main, ["r\udce9", "x.png"]),
        (scripts.export.main, ["run", "out\udce9"]),
        (scripts.report.main, ["r\udce9"]),
    ],
)
def test_what_cannot_be_written_down_is_refused(main: Any, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"\\xe9.* is not in UTF-8, and neither .*; rename the fi"):
        main(arguments)
