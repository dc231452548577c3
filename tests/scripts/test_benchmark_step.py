"""scripts/benchmark.py step, run and compare, and the charts, in their shortest form."""

import json
import math
import sys
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.commands import run_logged
from data.settings import RunStopped, UserError
from pretrain.machine.apart import in_fresh_process
from pretrain.machine.held_memory import has_memory_counter
from scripts._benchmark.installed import Package, choose
from scripts._benchmark.options import RunOptions, VariantOptions
from scripts._benchmark.records import Rounds, add_values, make_record, table
from scripts._benchmark.training import our_step, processes, variants
from scripts._benchmark.training.costs import count_flops, peak_mib
from scripts._benchmark.training.run import steps_between_checkpoints
from scripts._benchmark.training.step import make_step
from scripts._benchmark.training.step_alternatives import ALTERNATIVES
from scripts._benchmark.training.subject import Subject
from scripts.benchmark import main
from tests.launching import run_forked

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
SHORT = ["--rounds=1", "--seconds=0.01", "--batch-size=4", "--threads=1"]
INSTALLED = [name for name, other in ALTERNATIVES.items() if other.package.is_installed]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a configuration of an encoder that trains at once, and return its path."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    encoder = "{patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2, sees_masked: false}"
    path.write_text(f"data: {{image_size: 16}}\nencoder: {encoder}\n")
    return str(path)


def subject_of(config: str, precision: str = "fp32", **others: Any) -> Subject:
    options: dict[str, Any] = {"image_size": None, "batch_size": 4, "compile": False, "threads": 1}
    return Subject(encoder=config, precision=precision, **(options | others))


# ---------------------------------------------------------------- step


@pytest.mark.faults
def test_step_measures_speed_share_of_the_peak_and_memory(config: str, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    others = [name for name in INSTALLED if name == "vit_pytorch"]  # the others import for long
    against = ",".join(others) or "none"
    arguments = ["step", f"--encoder={config}", "--precision=bf16", f"--against={against}", *SHORT]
    command = [sys.executable, str(SCRIPT), *arguments, f"--json={path}"]
    done = run_forked(command)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    variants = {"timm", "step", "selective", "maskfree", *others}
    for unit in ("images_per_second", "mfu", "peak_memory_mib"):
        assert set(record[unit]) == variants
        for values in record[unit].values():
            assert 0 < values["min"] <= values["median"] <= values["max"] < math.inf
            assert len(values["rounds"]) == 1
    faster = {"step_vs_timm", "step_maskfree_vs_timm", *(f"step_vs_{name}" for name in others)}
    assert faster < set(record["ratios"])
    assert all(name.replace("_", "-") in record["machine"] for name in others)
    costs = {"memory_vs_timm", "memory_maskfree_vs_timm", "memory_selective_vs_timm"}
    assert costs <= set(record["lower_is_better"]) <= set(record["ratios"]) - faster
    assert record["settings"]["image_size"] == 16
    speed, peak = record["images_per_second"]["step"], record["matrix_gflop_per_second"]
    share = speed["median"] * record["gflop_per_image"]["step"] / peak["median"]
    assert record["mfu"]["step"]["median"] == pytest.approx(share)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert lines["memory_vs_timm"].endswith("lower is better")
    assert not lines["step_vs_timm"].endswith("better")
    assert "GFLOP an image" in done.stdout


@pytest.mark.slow
def test_a_mask_free_step_computes_less_and_both_train() -> None:
    subject = subject_of("vit_tiny_patch16_224", image_size=32)
    whole, maskfree = make_step("step", subject), make_step("maskfree", subject)
    assert count_flops(maskfree) < 0.8 * count_flops(whole)
    for step in (whole, maskfree, make_step("timm", subject)):
        step()


def test_the_bare_step_moves_the_weights_and_settles_what_was_bad(config: str) -> None:
    from pretrain.training.launch import start
    from pretrain.training.trainer import Trainer

    ours = subject_of(config).pretrain_config()
    model = our_step.make_model(ours)
    optim = replace(ours.optim, steps=10, warmup_steps=0)
    none: Any = None
    trainer = Trainer(start(ours.run), ours.run, optim, model, none)
    step = our_step.bare_step(trainer, our_step.random_batch((4, 3, 16, 16)))
    before = model.head.weight.detach().clone()
    for _ in range(3):
        step()
    assert not torch.equal(model.head.weight, before)
    assert len(trainer._flags) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(ALTERNATIVES))
def test_an_alternative_trains_an_encoder_of_our_size(
    name: str, precision: str, config: str
) -> None:
    if name not in INSTALLED:
        pytest.skip(f"{name} {ALTERNATIVES[name].package.complaint}")
    subject = subject_of(config, precision)
    import_module(ALTERNATIVES[name].module)
    step = ALTERNATIVES[name].make(subject)
    step()
    flops, bare = count_flops(step), count_flops(make_step("timm", subject))
    if name == "transformers_mae":  # a quarter of the patches, then a decoder
        assert 0.25 * bare < flops < 0.9 * bare
    else:  # the encoder, and a head
        assert 0.95 * bare < flops < 2 * bare


def test_a_variant_is_compiled_where_its_keys_say_so(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def compile_model(model: nn.Module) -> None:
        compiled.append(model)

    monkeypatch.setattr(nn.Module, "compile", compile_model)
    options = VariantOptions(config, [], batch_size=2, threads=1, rounds=1, seconds=0.01)
    for keys in ([], ["run.compile=true"]):
        variants.make_step(options, keys)()
    assert len(compiled) == 1


# ---------------------------------------------------------------- what is counted


def test_operations_are_counted_once_compiled_or_not() -> None:
    layer, images = nn.Linear(8, 16, bias=False), torch.ones(4, 8)

    def work() -> None:
        layer(images).sum().backward()

    expected = 2 * (2 * 4 * 8 * 16)  # forward, and the weight's gradient
    assert count_flops(work) == expected
    layer.compile()
    assert count_flops(work) == expected


def test_scores_that_are_computed_again_are_not_counted() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))

    def work() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    assert count_flops(work) == 3 * 2 * (2 * 2 * 5 * 5 * 4)


@pytest.mark.skipif(not has_memory_counter(), reason="no /proc")
def test_peak_memory_is_what_the_work_holds_at_most() -> None:
    make = partial(partial, torch.ones, 16 << 20)  # 64 MiB, let go at once
    assert 55 < in_fresh_process(peak_mib, make) < 90


def test_a_subject_is_a_name_or_a_configuration(config: str) -> None:
    sizes = subject_of(config).sizes
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert [sizes[name] for name in names] == [32, 2, 2, 128]
    assert (sizes["patch_size"], sizes["image_size"], subject_of(config).num_patches) == (4, 16, 16)
    named = subject_of("vit_tiny_patch16_224", image_size=32)
    assert (named.sizes["hidden_size"], named.side) == (192, 32)
    assert subject_of("vit_tiny_patch16_224").side == 224
    assert subject_of(config).encoder_config().sees_masked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {position: sincos_2d}", "encoder.position=sincos_2d of --encoder="),
        ("encoder: {stem: resnet26d}", "encoder.stem=resnet26d of --encoder="),
        ("data: {image_size: [16, 32]}", "takes images of 16 x 32 pixels"),
        ("data: {channels: 1}", "data.channels=1 of --encoder="),
    ],
)
def test_what_others_have_not_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        main(["step", f"--encoder={path}", "--against=none", *SHORT])


# ---------------------------------------------------------------- who takes part


def test_what_is_not_installed_is_left_out_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"here": Package("torch", "torch"), "there": Package("some-package", "no_such_module")}
    assert choose(None, known) == ["here"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "there needs some-package, which is not installed" in line
    assert "pip install -e '.[bench]'" in line
    assert choose("none", known) == []
    assert choose("here", known) == ["here"]
    with pytest.raises(UserError, match="there needs some-package, which is not installed"):
        choose("here,there", known)
    with pytest.raises(UserError, match="'nowhere' is not one of here, there, none"):
        choose("nowhere", known)


# ---------------------------------------------------------------- run


def test_run_has_a_checkpoint_in_each_turn(shards: Path, config: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    arguments = [f"--encoder={config}", *SHORT, "--rounds=2", f"--json={path}"]
    main(["run", f"{shards}/train-0.tar", *arguments])
    record = json.loads(path.read_text())
    assert set(record["ratios"]) == {"run_vs_step"}
    assert set(record["images_per_second"]) == set(record["mfu"]) == {"run", "step"}
    assert record["mfu"]["run"]["min"] > 0
    for values in [*record["images_per_second"].values(), *record["spread"].values()]:
        assert len(values["rounds"]) == 2
        assert 0 < values["min"] < math.inf
    assert record["settings"]["checkpoint_every"] >= 1
    assert len(record["seconds"]["checkpoint"]["rounds"]) >= 2


def test_a_checkpoint_comes_by_steps_or_by_minutes() -> None:
    assert steps_between_checkpoints(0.1) == 1000
    assert steps_between_checkpoints(3.6) == pytest.approx(500)  # 30 minutes


@pytest.fixture
def options(config: str) -> RunOptions:
    subject: dict[str, Any] = asdict(subject_of(config, threads=2))
    lengths: dict[str, Any] = {"workers": 0, "processes": 2, "rounds": 2, "seconds": 0.01}
    return RunOptions(**subject, **lengths)


_STUB = """\
import json, sys
from pathlib import Path
[path, *overrides] = sys.argv[1:]
keys = dict(text.split("=", 1) for text in overrides)
assert "log_every: 1" in Path(path).read_text()
folder = Path(keys["run.dir"])
folder.mkdir()
with (folder / "metrics.jsonl").open("w") as file:
    for step in range(1, int(keys["optim.steps"]) + 1):
        speed = 100 if keys["run.threads"] == "2" else 50
        record = {"step": step, "speed/images_per_second": 1 if step <= 5 else speed}
        file.write(json.dumps(record) + "\\n")
with Path(sys.argv[0]).with_name("started").open("a") as file:
    file.write(keys["run.threads"] + "\\n")
"""


def test_processes_take_turns_and_the_first_steps_do_not_count(
    options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.py").write_text(_STUB)
    monkeypatch.setattr(processes, "_RUN", tmp_path / "run.py")
    monkeypatch.setattr(processes, "_TORCHRUN", ())
    record = processes.measure_processes(options, ["unread.tar"], tmp_path)
    assert (tmp_path / "started").read_text().split() == ["2", "2", "1", "2", "1"]
    assert record["ratios"] == {"two_processes_vs_one": 0.5}
    assert record["spread"]["two_processes_vs_one"]["rounds"] == [0.5, 0.5]
    assert record["machine"]["threads"] == 2


def test_two_processes_are_two_ranks_of_one_run(
    options: RunOptions, shards: Path, tmp_path: Path
) -> None:
    commands = processes.commands_of(options, [f"{shards}/train-0.tar"], tmp_path)
    own = ["optim.steps=2", "data.trace=true", f"run.dir={tmp_path}/run"]
    run_logged([*commands[processes.TWO], *own], tmp_path / "log")
    for rank in (0, 1):
        steps = (tmp_path / f"run/trace/rank-{rank}.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["keys"]) for line in steps] == [2, 2]


def test_a_run_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    with pytest.raises(RunStopped, match="to be measured ended with status 3: no room"):
        processes.measure_command(command, 8, tmp_path)


def test_threads_and_images_must_divide(options: RunOptions, tmp_path: Path) -> None:
    for key, said in (("threads", "--threads=3"), ("batch_size", "--batch-size=3")):
        odd = replace(options, **{key: 3})
        with pytest.raises(UserError, match=f"{said} does not divide by --processes=2; try 4"):
            processes.measure_processes(odd, ["unread.tar"], tmp_path)


# ---------------------------------------------------------------- compare, and the chart


def record_of(ours: list[float], memory_mib: list[float], **settings: Any) -> dict[str, Any]:
    """Make a record whose baselines are 1."""
    speeds, peaks = Rounds(), Rounds("peak_memory_mib")
    for values, numbers in ((speeds, ours), (peaks, memory_mib)):
        for number in numbers:
            values.add("step", number)
            values.add("timm", 1.0)
    record = make_record("step", settings, speeds, {"step_vs_timm": ("step", "timm")})
    pairs = {"memory_vs_timm": ("step", "timm")}
    add_values(record, peaks, pairs, is_cost=True)
    return record


RECORDED = record_of([1.0, 1.1, 1.2], [0.8, 0.9, 1.0], rounds=3, precision="fp32")


def compared(
    tmp_path: Path, new: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, str]]:
    """Compare with `RECORDED`; return the status, and the lines by their first words."""
    paths = [tmp_path / "recorded.json", tmp_path / "new.json"]
    for path, record in zip(paths, (RECORDED, new), strict=True):
        path.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as left:
        main(["compare", *map(str, paths)])
    lines = capsys.readouterr().out.splitlines()
    return int(str(left.value.code)), {line.split()[0]: line for line in lines if line}


def test_a_ratio_falls_if_all_rounds_are_below_those_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = compared(tmp_path, record_of([0.8, 0.9, 0.99], [0.9, 0.9, 1.1]), capsys)
    assert status == 1
    assert "FELL" in lines["step_vs_timm"]
    assert "1.100 (1.000 to 1.200)" in lines["step_vs_timm"]
    assert "0.900 (0.800 to 0.990)" in lines["step_vs_timm"]
    assert "FELL" not in lines["memory_vs_timm"]
    assert lines["1"] == "1 got worse by more than the spread"


def test_memory_falls_where_it_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = compared(tmp_path, record_of([0.9, 1.01, 1.3], [1.1, 1.2]), capsys)
    assert status == 1
    assert "FELL  (lower is better)" in lines["memory_vs_timm"]
    assert "FELL" not in lines["step_vs_timm"]


def test_what_is_better_or_within_the_spread_has_not_fallen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = compared(tmp_path, record_of([1.3, 1.4], [0.5, 0.85]), capsys)
    assert status == 0
    assert "better" in lines["step_vs_timm"]
    assert "better" not in lines["memory_vs_timm"].replace("lower is better", "")
    assert lines["none"] == "none got worse"


def test_another_machine_and_other_settings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = record_of([1.1], [0.9], rounds=1, precision="bf16")
    new["machine"]["cpu"] = "another"
    del new["spread"]["memory_vs_timm"]
    status, lines = compared(tmp_path, new, capsys)
    assert status == 0
    assert "; compared all the same" in lines["machine:"]
    assert "now another" in lines["machine:"]
    assert lines["setting:"] == "setting: precision fp32, now bf16; compared all the same"
    assert lines["memory_vs_timm:"] == "memory_vs_timm: only recorded"


def test_folders_are_compared_by_the_names_of_their_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("recorded", "new"):
        (tmp_path / folder).mkdir()
        for name in ("step", folder):
            (tmp_path / folder / f"{name}.json").write_text(json.dumps(RECORDED))
    with pytest.raises(SystemExit) as left:
        main(["compare", str(tmp_path / "recorded"), str(tmp_path / "new")])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("recorded (min to max)") == 1
    assert "new: not recorded" in printed
    (tmp_path / "new/step.json").unlink()
    with pytest.raises(UserError, match="has the name of one in"):
        main(["compare", str(tmp_path / "recorded"), str(tmp_path / "new")])


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(RECORDED))
    for text, message in (("{", "is no record that --json wrote"), ("[]", "no record of ratios")):
        bad.write_text(text)
        with pytest.raises(UserError, match=message):
            main(["compare", str(good), str(bad)])
    bad.write_text(json.dumps(RECORDED | {"benchmark": "loader"}))
    with pytest.raises(UserError, match="a record of step and one of loader"):
        main(["compare", str(good), str(bad)])


def test_the_chart_has_a_bar_for_each_median(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra report")
    from matplotlib.colors import to_hex

    from scripts._benchmark.chart import draw, make_figure

    ratios, speeds, peaks = make_figure(RECORDED).axes
    bars: list[list[Any]] = [list(axes.patches) for axes in (ratios, speeds, peaks)]
    widths = [[bar.get_width() for bar in panel] for panel in bars]
    assert widths == [[1.1, 0.9], [1.1, 1.0], [0.9, 1.0]]
    assert [label.get_text() for label in ratios.get_yticklabels()] == list(RECORDED["spread"])
    assert len({to_hex(patch.get_facecolor()) for patch in ratios.patches}) == 2
    whiskers: Any = ratios.collections[0]
    ends = [[round(float(x), 6) for x in segment[:, 0]] for segment in whiskers.get_segments()]
    assert ends == [[1.0, 1.2], [0.8, 1.0]]
    draw(RECORDED, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.pictures.draw.is_possible", lambda: False)
    with pytest.raises(UserError, match=r"need matplotlib.*'\.\[report\]'"):
        main(["step", f"--png={tmp_path}/step.png", *SHORT])


def test_the_table_holds_long_names() -> None:
    speeds = Rounds(by_variant={"a": [2.0], "b": [1.0]})
    name = "a_ratio_of_a_very_long_name_that_goes_on"
    printed = table(make_record("step", {}, speeds, {name: ("a", "b")}))
    assert f"{name}  " in printed
