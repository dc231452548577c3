"""The linear probe as the head that fine-tuning starts at."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.probe
import finetune.run
from data.settings import UserError
from finetune.load import load_classifier
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
