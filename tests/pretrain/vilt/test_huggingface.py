"""ViLT models that transformers wrote: here they compute the same, and what they lack is said."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import Canvas, Fused, Pieces
from pretrain.vilt.saved import begin_from

transformers: Any = pytest.importorskip("transformers", reason="the extra [export] is not there")

LENGTH, PATCH, SIDE = 10, 8, 64
GRIDS = torch.tensor([[4, 8], [8, 4], [4, 4], [3, 5], [1, 8], [7, 1], [4, 7]])
CAPTIONS = ["a red square", "two blue circles on the left of three yellow triangles", "a wall"]
SIZES = [
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 72},
    {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
]


class Outputs(NamedTuple):
    """What a model makes of pairs: text and image tokens, and the heads' logits."""

    text: Tensor
    image: Tensor
    words: Tensor | None = None
    matching: Tensor | None = None


def vocabulary() -> Vocabulary:
    return Vocabulary.learn(CAPTIONS, 120)


def pieces(words: Vocabulary) -> Pieces:
    return Pieces(words.size, words.pad, words.mask, frozenset(words.special))


def write(kind: str, folder: Path, std: float = 0.2, **settings: Any) -> Any:
    """Let transformers write a small model, all of whose weights are random."""
    words = vocabulary()
    told = {"vocab_size": words.size, "max_position_embeddings": LENGTH, "image_size": 32}
    config = transformers.ViltConfig(**(told | {"patch_size": PATCH} | SIZES[0] | settings))
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    model.save_pretrained(folder)
    words.save(folder / "tokenizer.json")
    return model


def load(folder: Path, *, is_square: bool = False, max_tokens: int = LENGTH) -> ViltModel:
    """Make a model of ours that begins from such a folder."""
    encoder = make_encoder(EncoderConfig(init=str(folder)))
    canvas = None if is_square else Canvas(SIDE, 4)
    loss = LossConfig()
    model = ViltModel(encoder, pieces(vocabulary()), max_tokens, TextConfig(), loss, None, canvas)
    begin_from(model, str(folder))
    return model.eval()


def make_batch(*, is_square: bool = False) -> dict[str, Tensor]:
    number = len(GRIDS)
    grids = torch.full_like(GRIDS, 4) if is_square else GRIDS
    side = 32 if is_square else SIDE
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (number, 3, side, side), generator=generator).byte()
    texts = [vocabulary().encode(CAPTIONS[n % len(CAPTIONS)], LENGTH).tokens for n in range(number)]
    tokens = torch.stack([torch.from_numpy(text) for text in texts])
    keys = torch.arange(number)
    return {"image": image, "tokens": tokens, "grid": grids, "random_key": keys}


@torch.no_grad()
def ours(model: ViltModel, batch: dict[str, Tensor]) -> Outputs:
    fused: Fused = model.fuse(batch["tokens"], model.image_tokens(batch))
    assert model.words is not None
    words = model.words(fused.text, model.text.words.weight)
    return Outputs(fused.text, fused.image, words, model.match(fused))


@torch.no_grad()
def theirs(model: Any, pixels: Tensor, batch: dict[str, Tensor]) -> Outputs:
    """Run transformers' model, and put the patches, which it shuffles, into their order."""
    tokens, place = batch["tokens"], torch.arange(pixels.shape[2])
    rows, columns = (PATCH * batch["grid"]).unbind(1)
    mask = (place[:, None] < rows[:, None, None]) & (place < columns[:, None, None])
    inputs = {
        "input_ids": tokens,
        "attention_mask": (tokens != vocabulary().pad).long(),
        "pixel_values": pixels * mask[:, None],
        "pixel_mask": mask.long(),
    }
    torch.manual_seed(0)
    base = getattr(model, "vilt", model)
    found = base(**inputs).last_hidden_state
    torch.manual_seed(0)
    patches = base.embeddings.visual_embed(inputs["pixel_values"], inputs["pixel_mask"], -1)[2][0]
    torch.manual_seed(0)
    logits = None if base is model else model(**inputs).logits
    text, image = found[:, : tokens.shape[1]], found[:, tokens.shape[1] :]
    number = batch["grid"].prod(1)[:, None]
    is_patch = (patches < batch["grid"][:, None]).all(2)
    order = (patches @ torch.tensor([1000, 1])).masked_fill(~is_patch, 10**6).argsort(1)
    image = torch.cat(
        [image[:, :1], image[:, 1:].gather(1, order[..., None].expand_as(image[:, 1:]))], 1
    )
    assert torch.equal(is_patch.sum(1, keepdim=True), number)
    is_words = logits is not None and logits.ndim == 3
    return Outputs(text, image, logits if is_words else None, None if is_words else logits)


def assert_same(found: Outputs, expected: Outputs, batch: dict[str, Tensor]) -> None:
    is_piece = batch["tokens"] != vocabulary().pad
    torch.testing.assert_close(found.text[is_piece], expected.text[is_piece], atol=1e-5, rtol=0)
    for row, number in enumerate(1 + batch["grid"].prod(1)):
        mine, other = (outputs.image[row, :number] for outputs in (found, expected))
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    assert found.text[is_piece].std() > 0.01  # so that the comparison says something
    if expected.words is not None and found.words is not None:
        mine, other = found.words[is_piece], expected.words[is_piece]
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    if expected.matching is not None and found.matching is not None:
        score = (found.matching[:, 1] - found.matching[:, 0])[:, None]
        torch.testing.assert_close(score, expected.matching, atol=1e-5, rtol=0)


KINDS = ["ViltModel", "ViltForMaskedLM", "ViltForImageAndTextRetrieval"]


@pytest.mark.parametrize("size", SIZES, ids=["small", "larger"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_aspect_and_padded_texts_come_out_the_same(
    tmp_path: Path, kind: str, size: dict[str, int]
) -> None:
    model = write(kind, tmp_path, **size)
    mine, batch = load(tmp_path), make_batch()
    expected = theirs(model, mine.normalise(batch["image"]), batch)
    assert_same(ours(mine, batch), expected, batch)


def test_images_of_one_size_come_out_the_same(tmp_path: Path) -> None:
    model = write("ViltForMaskedLM", tmp_path)
    mine, batch = load(tmp_path, is_square=True), make_batch(is_square=True)
    expected = theirs(model, mine.normalise(batch["image"]), batch)
    assert_same(ours(mine, batch), expected, batch)


def test_small_weights_come_out_the_same_as_the_eps_of_the_norms_is_theirs(tmp_path: Path) -> None:
    model = write("ViltModel", tmp_path / "hf", std=2e-3)
    mine, batch = load(tmp_path / "hf"), make_batch()
    expected = theirs(model, mine.normalise(batch["image"]), batch)
    found = ours(mine, batch)
    torch.testing.assert_close(found.text[:, :2], expected.text[:, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.image[:, :2], expected.image[:, :2], atol=1e-5, rtol=0)


def test_the_eps_is_saved_and_loaded_with_the_encoder(tmp_path: Path) -> None:
    write("ViltModel", tmp_path / "hf", layer_norm_eps=1e-9)
    encoder = make_encoder(EncoderConfig(init=str(tmp_path / "hf")), (32, 64))
    save_encoder(encoder, tmp_path / "run/encoder")
    again: Any = load_encoder(tmp_path / "run")
    norms = [again.norm, again.blocks[1].norm2]
    assert [norm.eps for norm in norms] == [1e-9, 1e-9]
    like: Any = make_encoder(EncoderConfig(like=str(tmp_path / "run")))
    assert like.norm.eps == 1e-9


def test_the_image_half_alone_is_an_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("ViltForMaskedLM", tmp_path)
    with caplog.at_level(logging.INFO, "pretrain"):
        encoder = load_encoder(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    batch = make_batch(is_square=True)
    mine = load(tmp_path, is_square=True)
    pixels = mine.normalise(batch["image"])
    with torch.no_grad():
        tokens = encoder.eval().forward_features(pixels)
        expected = mine.encoder.forward_features(pixels)
    assert torch.equal(tokens, expected)
    assert said == [
        f"{tmp_path}: the encoder is a ViLT model's image half; its words and heads are no part "
        "of it"
    ]


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize("kind", ["ViltForQuestionAnswering", "ViltForImagesAndTextClassification"])
def test_heads_of_other_tasks_are_named(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(kind, tmp_path, num_images=2, modality_type_vocab_size=3)
    with caplog.at_level(logging.INFO, "pretrain"):
        load(tmp_path)
    said = "\n".join(record.getMessage() for record in caplog.records)
    start = f"encoder.init={tmp_path}"
    assert f"{start}: not used: classifier.0.bias, classifier.0.weight, classifier.1.bias" in said
    assert f"{start} has no matching.bias, matching.weight, words.bias and 4 more" in said
    assert "embeddings" not in said


def test_a_file_of_transformers_4_has_the_words_bias_under_another_name(tmp_path: Path) -> None:
    model = write("ViltForMaskedLM", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["mlm_score.bias"] = tensors.pop("mlm_score.decoder.bias")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    mine = load(tmp_path)
    assert mine.words is not None
    assert torch.equal(mine.words.bias, model.mlm_score.decoder.bias)


def test_fewer_tokens_are_the_first_and_more_are_refused(tmp_path: Path) -> None:
    write("ViltModel", tmp_path)
    whole, short = load(tmp_path), load(tmp_path, max_tokens=5)
    assert torch.equal(short.text.positions, whole.text.positions[:5])
    with pytest.raises(UserError, match=r"data\.max_tokens=11 is over the 10 of encoder\.init="):
        load(tmp_path, max_tokens=11)


def test_a_vocabulary_with_more_words_is_refused(tmp_path: Path) -> None:
    write("ViltModel", tmp_path, vocab_size=20)
    with pytest.raises(
        UserError, match=r"the vocabulary has \d+ pieces and encoder\.init=.* 20 wo"
    ):
        load(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write("ViltForMaskedLM", tmp_path)
    name = "vilt.embeddings.text_embeddings.position_embeddings.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks {name}; give a whole ViLT model"):
        load(tmp_path)
