"""The linear probe as the head that fine-tuning starts at."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.probe
import finetune.run
from data.settings import UserError
from data.shards import write_shard
from finetune.load import load_classifier
from tests.conftest import make_sample
from tests.launching import run_ranks

PLAIN = [f"encoder.{key}=null" for key in ("patch_size", "embed_dim", "depth", "num_heads")]


def test_tuning_starts_at_the_probe_on_any_number_of_ranks(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    own = ("optim.", "run.", "head.")
    told = [argument for argument in tiny_finetune if not argument.startswith(own)]
    finetune.probe.main([*told, "probe.threads=1", f"probe.dir={tmp_path}/out"])
    probe = load_classifier(tmp_path / "out/classifier")
    still = [*tiny_finetune, "head.init=probe", "optim.lr=0", "optim.steps=1"]
    still += ["optim.warmup_steps=0"]
    for world in (1, 2):
        run = tmp_path / f"run-{world}"
        said = run_ranks([*still, f"run.dir={run}"], world, tmp_path, script="finetune.run")
        assert "fitting the linear probe that the head starts at" in said
        tuned = load_classifier(run)
        for name, value in probe.state_dict().items():
            assert torch.allclose(value, tuned.state_dict()[name], rtol=1e-4, atol=1e-4), name
    again = run_ranks([*still, f"run.dir={run}"], 1, tmp_path, script="finetune.run")
    assert "fitting" not in again  # it is in the checkpoint


def test_rare_classes_count_as_much_in_that_probe_too(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    numbers = [*range(0, 120, 3), *range(1, 30, 3), *range(2, 30, 3)]  # 40, 10 and 10 a class
    write_shard(tmp_path / "odd.tar", map(make_sample, (200 + number for number in numbers)))
    still = [*tiny_finetune, "head.init=probe", "optim.lr=0", "optim.steps=1"]
    still += ["optim.warmup_steps=0", f"data.train={tmp_path}/odd.tar"]
    heads: list[torch.Tensor] = []
    for balance in ("false", "true"):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = tmp_path / balance
        finetune.run.main([*still, f"data.balance={balance}", f"run.dir={run}"])
        heads.append(load_classifier(run).last_layer.weight.detach())
    assert not torch.allclose(*heads, rtol=0.01)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["head.kind=mlp"], "head.init=probe needs head.kind=linear and head.pooling=average or"),
        (["head.pooling=both"], "head.init=probe needs head.kind=linear and head.pooling=averag"),
        (["data.multi_label=true"], "head.init=probe with data.multi_label=true, but a linear pr"),
        (
            ["encoder.name=test_resnet", "data.image_size=32", *PLAIN],
            "head.init=probe starts at a linear probe of a VisionTransformer, and encoder.name=te",
        ),
        (["head.init=ones"], "head.init=ones is not one of zeros, probe"),
    ],
)
def test_a_head_that_cannot_start_so_is_refused(
    tmp_path: Path, tiny_finetune: list[str], more: list[str], text: str
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError) as caught:
        finetune.run.main([*tiny_finetune, "head.init=probe", *more, f"run.dir={tmp_path}/run"])
    assert str(caught.value).startswith(text)
    assert not (tmp_path / "run").exists()
