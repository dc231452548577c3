"""Image-text models for transformers: what comes back is what went in, and what is lost is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import pretrain.vilt.run
from data.captions.config import CaptionedDataConfig
from data.captions.vocabulary import Vocabulary
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.extensions import norm_eps, set_norm_eps
from pretrain.encoder.facts import image_data
from pretrain.training.config import RunConfig
from pretrain.vilt.building import make_model
from pretrain.vilt.config import LossConfig, ViltConfig
from pretrain.vilt.saved import Vilt, begin_from, load_vilt
from scripts import export
from scripts._export.pairs import Pairs, PairSource, pick_pairs
from scripts._export.vilt import FORMAT

transformers: Any = pytest.importorskip("transformers", reason="the extra [export] is not there")

LENGTH, PATCH = 10, 4
CAPTIONS = [
    "a red square",
    "two blue circles on the left of three yellow triangles",
    "a [SEP] wall",
]
NO_MATCHING = LossConfig(matching=0, alignment=0)
RUN_CONFIG = RunConfig(dir="runs/mine")


def scatter(model: torch.nn.Module) -> None:
    """Make every parameter matter, also those that start at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


def source(
    name: str = "ViltForMaskedLM",
    size: tuple[int, int] = (16, 16),
    loss: LossConfig | None = None,
    channels: int = 3,
    **data: Any,
) -> PairSource:
    """Make an image-text model, as a run would, with an eps of its own."""
    told = CaptionedDataConfig(shards="none.tar", max_tokens=LENGTH, **data)
    sizes = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=PATCH, embed_dim=32, depth=2, num_heads=2
    )
    config = ViltConfig(RUN_CONFIG, told, sizes, loss=loss or LossConfig())
    mean, std = (tuple(first + 0.1 * n for n in range(channels)) for first in (0.4, 0.2))
    encoder = make_encoder(sizes, size, mean, std, channels)
    set_norm_eps(encoder, 1e-9)
    words = Vocabulary.learn(CAPTIONS, 120)
    model = make_model(config, encoder, words).eval()
    scatter(model)
    return PairSource("runs/mine", encoder, None, {}, Vilt(model, words, config), name)


def pairs(made: PairSource) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    sizes = [made.size] * 3 if made.aspect is None else [(16, 28), (12, 16), (28, 4)]
    shapes = [(made.channels, *size) for size in sizes]
    images = [torch.randint(0, 256, shape, generator=generator).byte() for shape in shapes]
    return Pairs(images, CAPTIONS)


def round_trip(made: PairSource, folder: Path) -> dict[str, Tensor]:
    """Write a source, run it, compare it, and return what came back."""
    FORMAT.check(made)
    FORMAT.write(made, folder)
    found, expected = FORMAT.run(folder, pairs(made)), made.outputs(pairs(made))
    for name, value in found.items():
        assert value.shape == expected[name].shape
        assert (value - expected[name]).abs().max() < 1e-5, name
        assert value.std() > 0.001  # so that the comparison says something
    return found


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("form", [{}, {"long_side": 28}, {"size": (8, 16)}, {"channels": 1}])
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("ViltModel", []),
        ("ViltForMaskedLM", ["words"]),
        ("ViltForImageAndTextRetrieval", ["score"]),
    ],
)
def test_it_comes_back(tmp_path: Path, name: str, last: list[str], form: dict[str, Any]) -> None:
    found = round_trip(source(name, **form), tmp_path)
    assert list(found) == ["pieces", "text", "image", "pooled", *last]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["layer_norm_eps"]) == ([name], 1e-9)


def test_it_begins_a_run_as_it_was(tmp_path: Path) -> None:
    """Ours, theirs and ours again: the same, but for the sum of the two logits of matching."""
    made = source("ViltForImageAndTextRetrieval", long_side=28)
    FORMAT.write(made, tmp_path)
    encoder = make_encoder(EncoderConfig(init=str(tmp_path)))
    assert norm_eps(encoder) == 1e-9
    assert image_data(encoder)["mean"] == pytest.approx((0.4, 0.5, 0.6))
    again = make_model(made.vilt.config, encoder, made.vilt.vocabulary).eval()
    begin_from(again, str(tmp_path))
    copy = replace(made, encoder=encoder, vilt=made.vilt._replace(model=again))
    found, expected = copy.outputs(pairs(made)), made.outputs(pairs(made))
    for name in ("text", "image", "pooled", "score"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
    assert Vocabulary.load(tmp_path).encode(CAPTIONS[1], LENGTH).tokens.tolist() == (
        made.vilt.vocabulary.encode(CAPTIONS[1], LENGTH).tokens.tolist()
    )


def test_a_photograph_of_another_size_is_cut_as_validation_cuts_it(tmp_path: Path) -> None:
    made = source()
    FORMAT.write(made, tmp_path / "out")
    ramp = torch.arange(40 * 60).reshape(40, 60, 1).expand(-1, -1, 3) // 10
    Image.fromarray(ramp.to(torch.uint8).numpy()).save(tmp_path / "photo.png")
    processor = transformers.ViltProcessor.from_pretrained(tmp_path / "out")
    found = processor(images=Image.open(tmp_path / "photo.png"), text="a", return_tensors="pt")
    expected = made.model.normalise(made.prepare((tmp_path / "photo.png").read_bytes())[None])
    assert (found.pixel_values - expected).abs().max() < 0.05  # two roundings of 8 bits


# ---------------------------------------------------------------- what is said


def test_a_model_without_matching_has_no_pooler(tmp_path: Path) -> None:
    made = source(loss=NO_MATCHING)
    assert list(round_trip(made, tmp_path)) == ["pieces", "text", "image", "words"]
    assert "it has no pooler (loss.matching=0): transformers begins one at random" in (
        FORMAT.describe(made)
    )


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"size": (48, 56)}, "the positions of 48x56 images, as its own are those of a square"),
        ({"channels": 4}, "its image processors take RGB or grey images"),
    ],
)
def test_what_it_cannot_hold_is_named(form: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        FORMAT.check(source(**form))


def test_images_that_are_given_bring_their_captions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a red picture\nanother line\n")
    found, whose = pick_pairs(source(), [tmp_path])
    assert found.captions[0] == "a red picture"
    assert len(found.captions[1]) > 0
    assert [tuple(image.shape) for image in found.images] == [(3, 16, 16)] * 2
    assert whose == f"{tmp_path}/a.png and 1 more"


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, captioned_shards: Path) -> Path:
    """Pretrain two steps from what transformers wrote, without the head of words."""
    folder = tmp_path_factory.mktemp("vilt")
    made = source(long_side=28)
    FORMAT.write(made, folder / "hf")
    pretrain.vilt.run.main(
        [
            f"encoder.init={folder}/hf",
            f"data.shards={captioned_shards}/train-0.tar",
            f"data.max_tokens={LENGTH}",
            "data.long_side=28",
            "data.workers=0",
            "loss.words=0",
            "optim.steps=2",
            "optim.batch_size=4",
            "optim.lr=1e-6",
            "run.threads=1",
            f"run.dir={folder}/run",
        ]
    )
    return folder / "run"


@pytest.mark.slow
def test_a_run_keeps_the_vocabulary_and_the_eps_that_it_began_with(run: Path) -> None:
    vilt, made = load_vilt(run), source(long_side=28)
    assert vilt.vocabulary.encode(CAPTIONS[1], LENGTH).tokens.tolist() == (
        made.vilt.vocabulary.encode(CAPTIONS[1], LENGTH).tokens.tolist()
    )
    assert (vilt.model.text.norm.eps, norm_eps(vilt.model.encoder)) == (1e-9, 1e-9)
    torch.testing.assert_close(
        vilt.model.text.words.weight, made.model.text.words.weight, atol=1e-3, rtol=0
    )


@pytest.mark.slow
def test_a_run_is_exported_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(run), str(tmp_path / "out"), "--to", "transformers"])
    said = capsys.readouterr().out
    assert "on 8 pairs of data.shards: pieces 0, text" in said
    assert "the score is the log odds that a caption is the image's own" in said
    assert "short side 16, long side at most 24; in training 28: for that, resize" in said
    card = (tmp_path / "out/README.md").read_text()
    assert "ViltForImageAndTextRetrieval of images and text" in card
    assert "arXiv:2102.03334" in card
    assert "corruption" not in card


@pytest.mark.slow
def test_the_image_half_of_a_run_says_what_is_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(run), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "the words' embeddings and the heads are left out; --to transformers keeps them" in said
    assert "its layer norms have an eps of 1e-09 here and of 1e-06 in timm" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--to", "transformers", "--model", "ViltForMaskedLM"], "has no head for it (loss.words="),
        (["--model", "ViltModel"], "--model=ViltModel is for an image-text run with --to transfor"),
        (["--to", "transformers", "--no-head"], "--no-head is for classifiers; give --model=ViltM"),
    ],
)
def test_options_that_do_not_go_together(run: Path, options: list[str], text: str) -> None:
    with pytest.raises(UserError) as raised:
        export.main([str(run), str(run.parent / "out"), *options])
    assert text in str(raised.value)


@pytest.mark.slow
def test_another_vocabulary_is_refused(run: Path, tmp_path: Path, captioned_shards: Path) -> None:
    told = [f"encoder.init={run.parent}/hf", f"data.shards={captioned_shards}/train-0.tar"]
    told += [f"data.max_tokens={LENGTH}", "data.long_side=28", f"run.dir={tmp_path}/run"]
    Vocabulary.learn(["one two three"], 100).save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"is not the vocabulary of encoder\.init="):
        pretrain.vilt.run.main([*told, f"data.vocabulary={tmp_path}/tokenizer.json"])
    (run.parent / "hf/tokenizer.json").rename(tmp_path / "moved.json")
    with pytest.raises(UserError, match=r"has words, and no tokenizer\.json or vocab\.txt beside"):
        pretrain.vilt.run.main(told)
