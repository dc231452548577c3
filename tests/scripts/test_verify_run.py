"""The verdict on real runs: sound ones pass, and whatever was tampered with is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune.run
import pretrain.run
from data.settings import UserError
from data.shards import write_shard
from pretrain.records.logs import read_records
from pretrain.records.traces import SKIPPED
from scripts.verify_run import main
from tests.conftest import BAD, make_sample

pytestmark = pytest.mark.timeout(300)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def own_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write shards like those of `shards`, that a test may change and others not see."""
    folder = tmp_path_factory.mktemp("own")
    for name, numbers in {"train-0": (0, 20), "train-1": (20, 27), "train-2": (27, 36)}.items():
        write_shard(folder / f"{name}.tar", map(make_sample, range(*numbers)))
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], own_shards: Path) -> Path:
    """Train for 17 steps: 3 epochs of 5, and 2 steps; checkpoints at 7, 14 and 17."""
    run = tmp_path_factory.mktemp("sound") / "run"
    more = [f"data.shards={own_shards}/train-*.tar", "optim.steps=17", f"run.dir={run}"]
    pretrain.run.main([*tiny, *more])
    return run


@pytest.fixture
def run(tmp_path: Path, sound: Path) -> Path:
    """Copy the run, to be tampered with."""
    return shutil.copytree(sound, tmp_path / "run", symlinks=True)


class Said(str):
    """What the script printed, its status, and what --json holds."""

    status: int
    record: Record

    def kinds(self) -> set[str]:
        return {violation["kind"] for violation in self.record["violations"]}

    def samples(self, kind: str) -> set[str]:
        found = [v["samples"] for v in self.record["violations"] if v["kind"] == kind]
        return {sample for samples in found for sample in samples}


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], Said]:
    def verify(run: Path) -> Said:
        status = 0
        capsys.readouterr()
        try:
            main([str(run), "--json", str(tmp_path / "verdict.json")])
        except SystemExit as error:
            status = int(str(error.code))
        said = Said(capsys.readouterr().out)
        said.status = status
        said.record = json.loads((tmp_path / "verdict.json").read_text())
        assert said.record["holds"] == (status == 0)
        return said

    return verify


Ask = Callable[[Path], Said]


def rewrite(path: Path, records: list[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change(run: Path, work: Callable[[list[Record]], object], rank: int = 0) -> None:
    """Change the records of a rank's trace."""
    path = run / f"trace/rank-{rank}.jsonl"
    records = read_records(path)
    work(records)
    rewrite(path, records)


def split(run: Path, steps: range, num_ranks: int = 2) -> None:
    """Make the trace that a run on several ranks would have written: batches of 8, cut evenly."""
    bad = {
        entry["step"]: entry["position"] % 8 for entry in read_records(run / "bad_samples.jsonl")
    }
    ranks: list[list[Record]] = [[] for _ in range(num_ranks)]
    for record in read_records(run / "trace/rank-0.jsonl"):
        slots = [slot for slot in range(8) if bad.get(record["step"]) != slot]
        for rank in range(num_ranks) if record["step"] in steps else range(1):
            size = 8 // num_ranks if record["step"] in steps else 8
            own = range(rank * size, (rank + 1) * size)
            keys = [key for slot, key in zip(slots, record["keys"], strict=False) if slot in own]
            ranks[rank].append({**record, "keys": keys})
    for rank, records in enumerate(ranks):
        rewrite(run / f"trace/rank-{rank}.jsonl", records)


# ---------------------------------------------------------------- sound runs


def test_a_sound_run_passes(run: Path, ask: Ask) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = ask(run)
    assert said.status == 0
    assert said.splitlines() == [
        *(
            f"epoch {epoch}: expected 36, once 35, bad 1, skipped 0, missing 0, twice 0"
            for epoch in range(3)
        ),
        said.splitlines()[3],
        said.splitlines()[4],
    ]
    assert said.splitlines()[3].startswith("epoch 3 (unfinished): expected 16, once 1")
    assert said.splitlines()[4].startswith("exactly once: 3 epochs and a part of the next, 1")
    assert " samples in 17 steps; " in said.splitlines()[4]
    assert said.record["step"] == 17
    assert said.record["epochs"][0] == {
        "epoch": 0,
        "is_finished": True,
        "expected": 36,
        "trained_once": 35,
        "bad": 1,
        "skipped": 0,
        "missing": 0,
        "twice": 0,
    }
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_any_number_of_ranks_passes(run: Path, ask: Ask) -> None:
    split(run, range(4, 13), num_ranks=2)
    assert len(read_records(run / "trace/rank-1.jsonl")) == 9
    assert ask(run).status == 0


def test_more_than_ten_ranks_are_in_the_order_of_their_numbers(
    tmp_path: Path, tiny: list[str], ask: Ask
) -> None:
    run = tmp_path / "run"
    more = ["optim.steps=4", "optim.batch_size=12", f"run.dir={run}"]
    pretrain.run.main([*tiny, *more])
    bad = {line["step"]: line["position"] % 12 for line in read_records(run / "bad_samples.jsonl")}
    records = read_records(run / "trace/rank-0.jsonl")
    for rank in range(12):
        own: list[Record] = []
        for record in records:
            slots = [slot for slot in range(12) if bad.get(record["step"]) != slot]
            keys = [k for slot, k in zip(slots, record["keys"], strict=True) if slot == rank]
            own.append({**record, "keys": keys})
        rewrite(run / f"trace/rank-{rank}.jsonl", own)
    assert ask(run).status == 0


def test_a_resumed_run_passes(run: Path, tiny: list[str], own_shards: Path, ask: Ask) -> None:
    for step in (14, 17):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    more = [f"data.shards={own_shards}/train-*.tar", "optim.steps=17", f"run.dir={run}"]
    pretrain.run.main([*tiny, *more])
    assert ask(run).status == 0


def test_fine_tuning_is_verified_too(tmp_path: Path, tiny_finetune: list[str], ask: Ask) -> None:
    finetune.run.main([*tiny_finetune, "data.trace=true", f"run.dir={tmp_path}/run"])
    said = ask(tmp_path / "run")
    assert said.status == 0
    assert said.splitlines()[-1] == (
        "exactly once: 4 epochs, 140 samples in 20 steps; 4 named as bad, 0 in skipped steps"
    )


def test_a_fraction_of_the_samples_is_verified_too(
    tmp_path: Path, tiny_finetune: list[str], ask: Ask
) -> None:
    extra = ["data.trace=true", "data.fraction=0.5", "optim.steps=18", f"run.dir={tmp_path}/run"]
    finetune.run.main([*tiny_finetune, *extra])
    said = ask(tmp_path / "run")
    assert said.status == 0
    assert said.splitlines()[-1] == (
        "exactly once: 6 epochs, 108 samples in 18 steps; 0 named as bad, 0 in skipped steps"
    )


def test_what_is_past_the_newest_whole_checkpoint_is_left_out(run: Path, ask: Ask) -> None:
    model = run / "checkpoints/step-00000017/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    said = ask(run)
    assert said.status == 0
    assert "not committed: 3 steps past step 14" in said
    assert said.splitlines()[-1].startswith("exactly once: 2 epochs and a part of the next, ")
    # even if a killed run had left nonsense there
    change(run, lambda records: records[-1].update(keys=["train-0.tar/000"] * 8))
    assert ask(run).status == 0


def test_a_torn_last_line_is_left_out(run: Path, ask: Ask) -> None:
    with (run / "trace/rank-0.jsonl").open("a") as file:
        file.write('{"step": 18, "epo')
    assert ask(run).status == 0


# ---------------------------------------------------------------- tampered with


def test_a_record_that_is_gone(run: Path, ask: Ask) -> None:
    gone = read_records(run / "trace/rank-0.jsonl")[6]
    change(run, lambda records: records.pop(6))
    said = ask(run)
    assert said.status == 1
    assert "  step 7 has no record in the trace" in said.splitlines()
    assert said.samples("missing") == set(gone["keys"])
    assert f"  epoch 1: {gone['keys'][0]} was neither trained on nor named as bad" in said
    assert f"missing {len(gone['keys'])}, twice 0" in said.splitlines()[1]


def test_steps_before_the_trace_was_turned_on(run: Path, ask: Ask) -> None:
    change(run, lambda records: records.__delitem__(slice(0, 12)))
    said = ask(run)
    assert said.status == 1
    for steps in ("1 to 5", "6 to 10", "11 to 12"):  # epoch by epoch
        assert f"  steps {steps} have no record in the trace" in said.splitlines()
    assert len(said.samples("missing")) == 35
    assert "more; --json names all" in said.splitlines()[-1]
    assert len(said.splitlines()) == 4 + 1 + 20 + 1


def test_a_rank_whose_record_is_gone(run: Path, ask: Ask) -> None:
    split(run, range(1, 18))
    gone = read_records(run / "trace/rank-1.jsonl")[6]["keys"]
    change(run, lambda records: records.pop(6), rank=1)
    said = ask(run)
    assert said.samples("missing") == said.samples("step") == set(gone)
    assert f"step 7 has {8 - len(gone)} samples of 8: lacks {', '.join(gone[:3])}" in said


def test_a_key_that_is_doubled(run: Path, ask: Ask) -> None:
    name = read_records(run / "trace/rank-0.jsonl")[6]["keys"][3]
    change(run, lambda records: records[6]["keys"].append(name))
    said = ask(run)
    assert said.status == 1
    assert said.samples("twice") == {name}
    assert f"  epoch 1: {name} was trained on more than once" in said
    assert f": repeats {name}\n" in said


def test_a_record_that_is_doubled(run: Path, ask: Ask) -> None:
    keys = read_records(run / "trace/rank-0.jsonl")[6]["keys"]
    change(run, lambda records: records.insert(6, records[6]))
    said = ask(run)
    assert said.samples("twice") == set(keys)
    assert "rank-0.jsonl, line 8: step 7 comes after step 7" in said


def test_two_keys_of_a_step_that_are_swapped(run: Path, ask: Ask) -> None:
    keys = read_records(run / "trace/rank-0.jsonl")[6]["keys"]
    change(run, lambda records: records[6].update(keys=[keys[1], keys[0], *keys[2:]]))
    said = ask(run)
    assert said.status == 1
    assert f"has another order: {keys[1]} where {keys[0]} belongs" in said
    assert "step 7 has " in said
    assert said.kinds() == {"step"}


def test_keys_of_two_steps_that_are_swapped(run: Path, ask: Ask) -> None:
    """In one epoch: each sample still comes once, but not where it belongs."""
    one, other = (read_records(run / "trace/rank-0.jsonl")[i]["keys"][0] for i in (5, 7))

    def swap(records: list[Record]) -> None:
        records[5]["keys"][0], records[7]["keys"][0] = other, one

    change(run, swap)
    said = ask(run)
    assert said.kinds() == {"step"}
    assert f"lacks {one}; holds, from another place, {other}\n" in said
    assert "once 35" in said.splitlines()[1]


def test_a_name_of_no_shard(run: Path, ask: Ask) -> None:
    name = read_records(run / "trace/rank-0.jsonl")[6]["keys"][0]
    change(run, lambda records: records[6]["keys"].__setitem__(0, "train-0.tar/of/no/shard"))
    said = ask(run)
    assert "holds what is in no shard: train-0.tar/of/no/shard" in said
    assert said.samples("missing") == {name}


def test_an_epoch_that_is_wrong(run: Path, ask: Ask) -> None:
    change(run, lambda records: records[6].update(epoch=0))
    assert "step 7 is traced as one of epoch 0, and belongs to 1" in ask(run)


def test_a_line_that_is_no_record(run: Path, ask: Ask) -> None:
    with (run / "trace/rank-0.jsonl").open("a") as file:
        file.write('garbage\n{"step": 3}\n')
    said = ask(run)
    assert "rank-0.jsonl, line 18: is no JSON" in said
    assert "rank-0.jsonl, line 19: is no trace record" in said


def test_a_line_of_the_ledger_that_is_gone(run: Path, ask: Ask) -> None:
    ledger = read_records(run / "bad_samples.jsonl")
    rewrite(run / "bad_samples.jsonl", ledger[1:])
    said = ask(run)
    assert said.status == 1
    assert said.samples("missing") == {f"train-1.tar/{BAD:03d}"}
    assert f"epoch 0: train-1.tar/{BAD:03d} was neither trained on nor named as bad" in said
    assert "missing 1, twice 0" in said.splitlines()[0]


def test_a_line_of_the_ledger_that_is_wrong(run: Path, ask: Ask) -> None:
    ledger = read_records(run / "bad_samples.jsonl")
    ledger[0]["key"] = "000"
    rewrite(run / "bad_samples.jsonl", ledger)
    said = ask(run)
    assert "the ledger names train-1.tar/000 at position " in said
    assert f"train-1.tar/{BAD:03d}" in said.samples("missing")


def test_a_sample_that_is_named_as_bad_and_trained_on(run: Path, ask: Ask) -> None:
    record = read_records(run / "trace/rank-0.jsonl")[6]
    position = 8 * 1  # the second step of its epoch, whose first slot is not the bad one
    shard, key = record["keys"][0].split("/")
    entry = {"step": 7, "epoch": 1, "position": position, "shard": shard, "key": key}
    ledger = [*read_records(run / "bad_samples.jsonl"), {**entry, "reason": "cannot be decoded"}]
    rewrite(run / "bad_samples.jsonl", ledger)
    assert f"holds what the ledger names as bad: {shard}/{key}" in ask(run)


def skip(run: Path, step: int) -> list[Record]:
    """Write the ledger of a step that was skipped, as the loop does; return its lines."""
    record = read_records(run / "trace/rank-0.jsonl")[step - 1]
    ledger = read_records(run / "bad_samples.jsonl")
    bad = {line["position"] for line in ledger if line["step"] == step}
    epoch, batch = divmod(step - 1, 5)
    start = 8 * batch
    positions = [p for p in range(start, min(start + 8, 36)) if p not in bad]
    lines: list[Record] = []
    for position, name in zip(positions, record["keys"], strict=True):
        shard, key = name.split("/")
        line = {"step": step, "epoch": epoch, "position": position, "shard": shard, "key": key}
        lines.append({**line, "reason": SKIPPED})
    rewrite(run / "bad_samples.jsonl", [*ledger, *lines])
    return lines


def test_a_skipped_step_is_counted_apart(run: Path, ask: Ask) -> None:
    lines = skip(run, 7)
    said = ask(run)
    assert said.status == 0
    assert f"once {35 - len(lines)}, bad 1, skipped {len(lines)}, missing 0" in said.splitlines()[1]


def test_a_skipped_step_is_named_whole(run: Path, ask: Ask) -> None:
    gone = skip(run, 7)[-1]
    ledger = read_records(run / "bad_samples.jsonl")
    rewrite(run / "bad_samples.jsonl", ledger[:-1])
    name = f"{gone['shard']}/{gone['key']}"
    assert f"step 7 was skipped, and the ledger does not name {name}" in ask(run)


def test_shards_with_another_content(run: Path, own_shards: Path, tmp_path: Path, ask: Ask) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for number in range(3):
        shutil.copy(own_shards / f"train-{number}.tar", copy)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(own_shards), str(copy)))
    assert ask(run).status == 0  # elsewhere, and the same
    samples = [make_sample(20 + (number + 1) % 7) for number in range(7)]
    write_shard(copy / "train-1.tar", samples)
    said = ask(run)
    assert said.status == 1
    assert "step-00000017: content of the shards (sha256) is " in said
    assert said.kinds() == {"checkpoint"}


def test_a_checkpoint_of_another_stream(run: Path, ask: Ask) -> None:
    """Of an older checkpoint too, whose files are not hashed again."""
    path = run / "checkpoints/step-00000007/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "consumed": 50}))
    assert "step-00000007: consumed is 50, and should be 52" in ask(run)


# ---------------------------------------------------------------- misuse


def refusal(run: Path) -> str:
    with pytest.raises(ValueError, match="RUN=") as caught:
        main([str(run)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misuse_is_told(run: Path, tmp_path: Path) -> None:
    assert "has no config.yaml; name the folder of a run" in refusal(tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("read: random", "read: sequential"))
    assert "only data.read=random promises each once" in refusal(run)
    (run / "config.yaml").write_text(config)
    shutil.rmtree(run / "checkpoints")
    assert "has no whole checkpoint, so none of its steps is committed yet" in refusal(run)
    shutil.rmtree(run / "trace")
    assert "has no trace of its samples; give data.trace=true" in refusal(run)


def test_whatever_the_objective_a_run_is_verified(run: Path, ask: Ask) -> None:
    """Its seed, its shards and its batch size decide the order; other groups are not read."""
    with (run / "config.yaml").open("a") as file:
        file.write("mine: {ratio: 0.5}\n")
    assert ask(run).status == 0


# ---------------------------------------------------------------- where the shards are


def test_a_run_is_verified_from_any_folder(
    tmp_path: Path, tiny: list[str], shards: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started with relative paths; its config.yaml has absolute ones."""
    here = tmp_path / "set [v2]"
    here.mkdir()
    shutil.copytree(shards, here / "mine")
    monkeypatch.chdir(here)
    own = ["data.shards=mine/train-*.tar", "data.val_shards=mine/val-0.tar"]
    pretrain.run.main([*tiny, *own, "optim.steps=8", "run.dir=run"])
    pretrain.run.main([*tiny, *own, "optim.steps=8", "run.dir=run"])  # and it resumes
    monkeypatch.chdir("/")
    assert ask(here / "run").status == 0
    (here / "mine").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\(--shards says where those of .*config.yaml are now\)$"):
        main([str(here / "run")])
    main([str(here / "run"), "--shards", f"{tmp_path}/elsewhere/train-*.tar"])
    with pytest.raises(UserError, match=r"^--shards.* does not exist"):
        main([str(here / "run"), "--shards", "nothing.tar"])


def test_an_image_text_run_is_verified_too(vilt_run: Path, capsys: pytest.CaptureFixture[str]):
    main([str(vilt_run)])
    printed = capsys.readouterr().out
    assert "epoch 3: expected 36, once 34, bad 2, skipped 0, missing 0, twice 0" in printed
    assert "exactly once: 4 epochs, 136 samples in 12 steps; 8 named as bad" in printed
