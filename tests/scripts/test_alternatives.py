"""Other projects' objectives in our loop: trained, resumed, exported; equal to their own models."""

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from timm import create_model
from torch import Tensor

from data.batch import Batch
from data.settings import UserError
from pretrain.encoder import load_encoder, make_encoder
from pretrain.encoder.huggingface import to_hf
from pretrain.encoder.recompute import recompute_blocks
from pretrain.encoder.tokens import choose_attention
from pretrain.records.logs import read_records
from pretrain.training.optim import make_optimizer
from pretrain.training.validation import validate
from scripts import benchmark, report, verify_run
from scripts._benchmark import installed
from scripts._benchmark.alternatives import encoder as alternatives_encoder
from scripts._benchmark.alternatives.config import load_alternative
from scripts._benchmark.alternatives.model import AlternativeModel, make_alternative
from scripts._benchmark.alternatives.simmim import SimmimConfig, draw_squares
from tests.faults.test_ranks import figures, stop_after, weights_hash
from tests.launching import Ranks

OWN = {
    "mpp": [],
    "mae": ["mae.decoder_depth=1", "mae.decoder_width=32", "mae.decoder_heads=2"],
    "simmim": [],
}
needs_vit_pytorch = pytest.mark.skipif(
    find_spec("vit_pytorch") is None, reason="vit-pytorch is of the extra [bench]"
)
ALL = [pytest.param("mpp", marks=needs_vit_pytorch), "mae", "simmim"]
PATCHES = 16
Trained = Callable[[str], Path]


def asked(name: str) -> list[str]:
    return [f"alternative.name={name}", *OWN[name]]


def build(encoder: list[str], name: str, *more: str) -> AlternativeModel:
    """Build a small model whose weights are not those of the start."""
    config = load_alternative([*encoder, "data.shards=none.tar", *asked(name), *more])
    data = config.data
    torch.manual_seed(0)
    bare = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = make_alternative(config, bare)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch(num_images: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (num_images, 3, 16, 16), generator=generator)
    weight, key = torch.ones(num_images), torch.arange(num_images) * 12345
    return {"image": images.to(torch.uint8), "weight": weight, "random_key": key}


def smooth(num_images: int = 4) -> dict[str, Tensor]:
    """As `batch`, but with something to learn in the images: four colours, and what is between."""
    colours = torch.nn.functional.avg_pool2d(batch(num_images)["image"].float(), 8)
    images = torch.nn.functional.interpolate(colours * 2 - 128, scale_factor=8, mode="bilinear")
    return batch(num_images) | {"image": images.clamp(0, 255).to(torch.uint8)}


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Trained:
    """Train each alternative once for 40 steps, when it is asked for."""
    folder, done = tmp_path_factory.mktemp("runs"), set[str]()

    def trained(name: str) -> Path:
        if name not in done:
            benchmark.main(["pretrain", *tiny, *asked(name), f"run.dir={folder / name}"])
            done.add(name)
        return folder / name

    return trained


@pytest.mark.parametrize("name", ALL)
def test_it_trains_and_its_loss_falls(runs: Trained, name: str) -> None:
    records = read_records(runs(name) / "metrics.jsonl")
    losses = [record["train/loss"] for record in records]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5])
    assert [record["step"] for record in records if "val/loss" in record] == [20, 40]
    assert (runs(name) / "config.yaml").read_text().count(f"name: {name}\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_it_learns_a_few_images_by_heart(encoder: list[str], name: str) -> None:
    model, given = build(encoder, name), smooth()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    for _ in range(60):
        output = model(given)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("name", [ALL[0], "mae"])
def test_a_killed_run_resumes_bit_for_bit(
    runs: Trained, tmp_path: Path, tiny: list[str], name: str
) -> None:
    arguments = ["pretrain", *tiny, *asked(name), f"run.dir={tmp_path / 'cut'}"]
    log = tmp_path / "log"
    with Ranks(arguments, 1, log, script="scripts.benchmark") as ranks:
        stop_after(ranks, tmp_path / "cut", 10, Ranks.kill)
    newest = max(tmp_path.glob("cut/checkpoints/step-*"))
    assert "step-00000007" <= newest.name < "step-00000040"
    benchmark.main(arguments)
    assert weights_hash(tmp_path / "cut", 40) == weights_hash(runs(name), 40)
    assert figures(tmp_path / "cut") == figures(runs(name))


def test_its_run_is_verified(runs: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    verify_run.main([str(runs("mae"))])
    assert "\nexactly once: 8 epochs, " in capsys.readouterr().out


def test_its_run_has_no_report(runs: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another project's objective, of which there is no rep"):
        report.main([str(runs("mae")), f"--output={tmp_path / 'page.html'}"])


def test_another_alternative_does_not_go_on_in_its_folder(runs: Trained, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"alternative.name was mae, now simmim"):
        benchmark.main(["pretrain", *tiny, *asked("simmim"), f"run.dir={runs('mae')}"])


# ---------------------------------------------------------------- the encoder that is left


def theirs(name: str, run: Path) -> Any:
    """Let transformers load a run's encoder into its own ViT, of which nothing is ours."""
    encoder = load_encoder(run)
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "mae": (transformers.ViTMAEConfig, transformers.ViTMAEModel, {}),
        "simmim": (
            transformers.ViTConfig,
            transformers.ViTModel,
            {"add_pooling_layer": False, "use_mask_token": True},
        ),
    }
    config_kind, kind, options = kinds[name]
    settings = config_kind(**alternatives_encoder.transformers_settings(encoder))
    if name == "mae":
        settings.mask_ratio = 0.0
    state = to_hf(encoder.state_dict())
    if name == "simmim":
        state["embeddings.mask_token"] = torch.zeros(1, 1, encoder.embed_dim)
    return kind.from_pretrained(None, config=settings, state_dict=state, **options).eval()


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_encoder_computes_what_transformers_own_does(runs: Trained, name: str) -> None:
    encoder = load_encoder(runs(name)).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    in_order = {"noise": torch.arange(PATCHES).expand(2, -1).float()} if name == "mae" else {}
    with torch.no_grad():
        tokens = theirs(name, runs(name))(pixels, **in_order).last_hidden_state
        torch.testing.assert_close(encoder.forward_features(pixels), tokens, atol=1e-5, rtol=0)


@needs_vit_pytorch
@torch.no_grad()
def test_the_encoder_computes_what_vit_pytorchs_mpp_sees(encoder: list[str]) -> None:
    """All its own code but for the blocks: it cuts patches, embeds them and adds positions."""
    model = build(encoder, "mpp", "mpp.replace_ratio=0", "mpp.random_ratio=0").eval()
    seen: list[Tensor] = []
    mpp: Any = model.objective

    def note(_: Any, given: tuple[Tensor]) -> None:
        seen.append(given[0])

    mpp.model.to_bits.register_forward_pre_hook(note)
    pixels = model.normalise(batch()["image"])
    mpp(pixels, batch()["random_key"])
    torch.testing.assert_close(model.encoder.forward_features(pixels), seen[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_encoder_is_like_any_other(runs: Trained, name: str) -> None:
    encoder = load_encoder(runs(name))
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    folder = f"local-dir:{runs(name)}/encoder"
    loaded = create_model(folder, pretrained=True).eval()
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(images), encoder.eval()(images))


# ---------------------------------------------------------------- the objective is theirs


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_loss_is_that_of_transformers_own_model(encoder: list[str], name: str) -> None:
    model = build(encoder, name).eval()
    inner: Any = model.objective
    own = copy.deepcopy(inner.model)
    kinds: dict[str, Any] = {"mae": transformers.ViTMAEModel, "simmim": transformers.ViTModel}
    options = {} if name == "mae" else {"add_pooling_layer": False, "use_mask_token": True}
    state = to_hf(model.encoder.state_dict())
    if name == "simmim":
        state["embeddings.mask_token"] = inner.model.vit.mask_token.detach()
    own.vit = (
        kinds[name].from_pretrained(None, config=own.config, state_dict=state, **options).eval()
    )
    given = batch()
    pixels = model.normalise(given["image"])
    told: dict[str, Any] = {}

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        told.update(given)

    handle = inner.model.register_forward_pre_hook(note, with_kwargs=True)
    output = model(given)
    handle.remove()
    expected = own(pixels, **told).loss
    torch.testing.assert_close(output.loss, expected * 4, atol=1e-5, rtol=1e-5)
    assert model.summarise(output.sums)["loss"] == pytest.approx(float(expected.detach()))


@needs_vit_pytorch
def test_the_loss_is_that_of_vit_pytorchs_own_class(encoder: list[str]) -> None:
    """Its targets are made from pixels in 0..1: all grey images are of one class."""
    model = build(encoder, "mpp").train()
    mpp: Any = model.objective
    given = batch() | {"image": torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)}
    with torch.no_grad():
        mpp.model.to_bits.weight.zero_()
        mpp.model.to_bits.bias.zero_()
        mpp.model.to_bits.bias[511] = 20.0
        assert float(model(given).loss) < 1e-4
        assert float(model(batch()).loss) > 4 * 5


def test_mae_sees_a_quarter_and_simmim_whole_squares() -> None:
    keys = torch.arange(200)
    is_masked = draw_squares(keys, (8, 8), SimmimConfig())
    assert set(is_masked.sum(1).tolist()) == {40}  # 10 of 16 squares: .6, rounded up
    squares = is_masked.view(200, 4, 2, 4, 2).transpose(2, 3).flatten(3)
    assert torch.equal(squares.all(3), squares.any(3))
    assert squares.all(3).float().mean(0).sub(0.625).abs().max() < 0.15
    assert torch.equal(draw_squares(keys[7:9], (8, 8), SimmimConfig()), is_masked[7:9])


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_an_images_mask_does_not_depend_on_its_batch(encoder: list[str], name: str) -> None:
    model, given = build(encoder, name).eval(), batch()
    parts = [{key: value[place] for key, value in given.items()} for place in ([0], [1, 3], [2])]
    torch.manual_seed(3)
    whole = model(given).loss
    total = sum(model(part).loss for part in parts)
    torch.testing.assert_close(whole, total, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_padding_and_damaged_images_count_nothing(encoder: list[str], name: str) -> None:
    model, given = build(encoder, name).eval(), batch()
    used = {key: value[:3] for key, value in given.items()}
    given["weight"][3] = 0
    assert torch.equal(model(given).loss, model(used).loss)
    given["weight"].zero_()
    output = model(given)
    assert float(output.loss.detach()) == 0
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


@pytest.mark.parametrize("name", ALL)
def test_a_validation_gives_the_same_twice_and_draws_nothing(encoder: list[str], name: str) -> None:
    model = build(encoder, name)
    state = torch.get_rng_state()
    batches = lambda: [Batch(batch(), [], [])]  # noqa: E731
    first = validate(Accelerator(cpu=True), batches, "data.val_shards", 4, model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert validate(Accelerator(cpu=True), batches, "data.val_shards", 4, model) == first


# ---------------------------------------------------------------- in the loop


@pytest.mark.parametrize("name", ALL)
def test_the_encoder_is_trained_once_and_a_copy_has_its_own(encoder: list[str], name: str) -> None:
    model = build(encoder, name)
    config = load_alternative([*encoder, "data.shards=none.tar", *asked(name)])
    optimizer = make_optimizer(model, model.encoder, config.optim)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trained)
    storages = [value.data_ptr() for value in model.state_dict().values()]
    assert len(set(storages)) == len(storages)  # what safetensors asks for
    other = copy.deepcopy(model)  # as for the averaged weights of optim.ema
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter += 1
    torch.manual_seed(0)
    before = model(batch()).loss
    torch.manual_seed(0)
    assert model(batch()).loss == before
    torch.manual_seed(0)
    assert other(batch()).loss != before


@pytest.mark.parametrize("name", ALL)
def test_blocks_can_be_computed_again_for_the_backward_pass(encoder: list[str], name: str) -> None:
    gradients: list[list[Tensor]] = []
    calls: list[Any] = []

    def note(block: Any, _: Any) -> None:
        calls.append(block)

    for kind in ("none", "full"):
        model = build(encoder, name)
        model.encoder.blocks[0].register_forward_pre_hook(note)
        recompute_blocks(model.encoder, kind)
        torch.manual_seed(0)
        model(batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(calls) == 1 + 2
    for kept, again in zip(*gradients, strict=True):
        assert torch.equal(kept, again)


def test_mae_positions_are_fixed_and_the_decoders_attention_is_chosen(encoder: list[str]) -> None:
    model = build(encoder, "mae")
    positions: Any = model.encoder.pos_embed
    assert not positions.requires_grad
    inner: Any = model.objective
    for table in (positions, inner.model.decoder.decoder_pos_embed):
        assert table[0, 0].count_nonzero() == 0  # the class token has no place
        assert table[0, 1:].square().mean() == pytest.approx(0.5)  # of sines and cosines
        assert len(table[0].unique(dim=0)) == table.shape[1]
    assert inner.model.decoder.mask_token.count_nonzero() > 0
    assert inner.fused_attn
    choose_attention(model, torch.device("cpu"), "no")
    assert inner.fused_attn
    with torch.no_grad():
        fused = model(batch()).loss
        inner.fused_attn = False
        torch.testing.assert_close(model(batch()).loss, fused)
    assert not inner.fused_attn


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corruption.ratio=0.5"], "corruption.ratio is of our own objective, and an alternative"),
        (["target.kind=pixels"], "target.kind is of our own objective"),
        (["decoder.depth=2"], "decoder.depth is of our own objective"),
        (["encoder.sees_masked=false"], "encoder.sees_masked=False is nothing that alternative."),
        (["run.parallel=fsdp"], "run.parallel=fsdp is nothing that alternative.name=mae can"),
        (["encoder.init=runs/a"], "encoder.init=runs/a is nothing that alternative.name=mae can"),
        (["simmim.unit=1"], "simmim.unit=1 has no effect with alternative.name=mae; leave it"),
        (["mpp.mask_ratio=0.5"], "mpp.mask_ratio=0.5 has no effect with alternative.name=mae"),
        (["mae.decoder_width=30"], "mae.decoder_width=30 must be a multiple of mae.decoder_heads"),
        (["mae.mask_ratio=1"], "mae.mask_ratio=1.0 is not in 0..1"),
        (["mae.mask_ratio=0.99"], "mae.mask_ratio=0.99 leaves all or none of the (4, 4) patches"),
        (["alternative.name=beit"], "alternative.name=beit is not one of mpp, mae, simmim"),
        (["alternative.name=null"], "alternative.name is missing; give one of mpp, mae, simmim"),
        (["mae.mask=1"], "mae.mask is no key; did you mean mae.mask_ratio?"),
        (["encoder.position=none"], "takes a plain ViT, and this one has an encoder without"),
        (["data.image_size=[16,32]"], "data.image_size=16x32, but alternative.name=mae takes"),
    ],
)
def test_a_key_that_does_not_apply_is_refused_by_name(
    tmp_path: Path, tiny: list[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        benchmark.main(["pretrain", *tiny, *asked("mae"), *arguments, f"run.dir={tmp_path}/run"])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_our_own_objective_is_refused() -> None:
    with pytest.raises(UserError, match=r"^corruption.ratio, corruption.mask_ratio, corr.* is of"):
        load_alternative(["configs/pretrain/cifar10.yaml", "alternative.name=mae"])


def test_squares_that_do_not_fit_are_refused(encoder: list[str]) -> None:
    with pytest.raises(UserError, match=r"simmim.unit=3 does not cut 4x4 patches into squares"):
        build(encoder, "simmim", "simmim.unit=3")


@pytest.mark.parametrize(("name", "package"), [("mpp", "vit-pytorch"), ("mae", "transformers")])
def test_one_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, encoder: list[str], name: str, package: str
) -> None:
    monkeypatch.setattr(installed, "find_spec", {}.get)
    text = f"alternative.name={name} needs {package}, which is not installed; run pip install -e "
    with pytest.raises(UserError, match=re.escape(f"{text}'.[bench]' here")):
        build(encoder, name)


def test_help_names_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["pretrain", "--help"])
    printed = capsys.readouterr().out
    for key in ("alternative.name", "mpp.mask_ratio", "mae.decoder_depth", "simmim.unit"):
        assert f"  {key}  (" in printed
    assert "corruption." not in printed
