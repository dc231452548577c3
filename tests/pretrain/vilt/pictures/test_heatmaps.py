"""Heat maps of words: as a slow computation of each pair alone has them, painted in place."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from data.settings import UserError
from pretrain.vilt.images import choose_patches, tokens_of_any_aspect
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import ImageTokens
from pretrain.vilt.pictures.heatmaps import WordMaps, choose_words, paint, word_maps
from pretrain.vilt.transport import find_plan
from tests.pairs import GRIDS, LENGTH, make_batch, make_model, make_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def tokens_of_one(model: ViltModel, batch: dict[str, Tensor], number: int) -> Tensor:
    """Return the tokens of one image that has no other patches: (1, P + N, D)."""
    one = {name: values[number : number + 1] for name, values in batch.items()}
    if "grid" not in batch:
        return model.image_tokens(one).tokens
    rows, columns = GRIDS[number]
    places = choose_patches(one["random_key"], one["grid"], (5, 5), rows * columns, is_random=False)
    assert places.is_patch.all()
    patches = model.encoder.patch_embed(model.normalise(one["image"]))
    return tokens_of_any_aspect(model.encoder, patches, one["grid"], (5, 5), places)


@torch.no_grad()
def slow(model: ViltModel, batch: dict[str, Tensor], number: int) -> list[tuple[Tensor, Tensor]]:
    """Return the plan and the attention of each word of one pair, without a batch or padding."""
    encoder: Any = model.encoder
    tokens, words = batch["tokens"][number], batch["words"][number]
    tokens = tokens[tokens != model.pieces.pad]
    image = tokens_of_one(model, batch, number)
    whole = torch.ones(image.shape[:2], dtype=torch.bool)
    fused = model.fuse(tokens[None], ImageTokens(image, whole))
    length, start = len(tokens), len(tokens) + encoder.num_prefix_tokens

    pieces = [i for i in range(length) if words[i] >= 0 and not model.is_special[tokens[i]]]
    texts, patches = fused.text[0, pieces].double(), fused.image[0, 1:].double()
    costs = torch.tensor([[1 - torch.cosine_similarity(t, p, 0) for p in patches] for t in texts])
    is_word, is_patch = (torch.ones(1, side, dtype=torch.bool) for side in costs.shape)
    plan = find_plan(costs[None].double(), is_word, is_patch)[0]

    x = torch.cat([model.text(tokens[None]), image], dim=1)
    for block in encoder.blocks[:-1]:
        x = block(x)
    attention = encoder.blocks[-1].attn
    queries, keys, _ = attention.qkv(encoder.blocks[-1].norm1(x))[0].double().chunk(3, dim=1)
    heads = zip(queries.chunk(3, dim=1), keys.chunk(3, dim=1), strict=True)
    maps = [(query @ key.T / 8**0.5).softmax(1) for query, key in heads]  # (T, T) each
    looks = cast(Tensor, sum(maps)) / 3

    found: list[tuple[Tensor, Tensor]] = []
    for word in sorted({int(words[i]) for i in pieces}):
        own = [i for i in pieces if words[i] == word]
        part = cast(Tensor, sum(plan[pieces.index(i)] for i in own))
        look = cast(Tensor, sum(looks[i, start:] for i in own)) / len(own)
        found.append((part / part.sum(), look))
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["one size", "own aspect"])
def mapped(
    request: pytest.FixtureRequest, vocabulary: Vocabulary
) -> tuple[ViltModel, dict[str, Tensor], list[WordMaps]]:
    model = make_model(vocabulary, has_aspect=request.param)
    batch = make_batch(vocabulary, has_aspect=request.param)
    model.train()  # where images of their own aspect would lose patches
    maps = word_maps(model, vocabulary, batch)
    assert model.training
    return model.eval(), batch, maps


def test_words_of_several_pieces_are_joined_and_unknown_ones_left_out(
    mapped: tuple[ViltModel, dict[str, Tensor], list[WordMaps]], vocabulary: Vocabulary
) -> None:
    assert (vocabulary.encode("redish", LENGTH).words >= 0).sum() > 1
    assert [maps.words for maps in mapped[2]] == [
        ["a", "redish", "block"],
        ["blue", ",", "blue", ":", "the", "!"],
        ["red"],
    ]


def test_maps_are_those_of_a_slow_computation(
    mapped: tuple[ViltModel, dict[str, Tensor], list[WordMaps]],
) -> None:
    model, batch, found = mapped
    for number, maps in enumerate(found):
        grid = GRIDS[number] if "grid" in batch else [3, 5]
        expected = slow(model, batch, number)
        assert maps.plan.shape == maps.attention.shape == (len(maps.words), *grid)
        for word, (plan, look) in enumerate(expected):
            torch.testing.assert_close(
                maps.plan[word].flatten().double(), plan, atol=1e-5, rtol=1e-3
            )
            torch.testing.assert_close(
                maps.attention[word].flatten().double(), look, atol=1e-6, rtol=1e-3
            )


def test_the_row_is_the_words_own(
    mapped: tuple[ViltModel, dict[str, Tensor], list[WordMaps]],
) -> None:
    """Words differ in their rows, by more than the tolerance above."""
    for maps in mapped[2]:
        for values in (maps.plan, maps.attention):
            apart = (values[:, None] - values).abs().amax((2, 3))
            assert (apart + torch.eye(len(apart)) > 1e-3).all()


def test_words_that_few_captions_have_are_chosen_in_order() -> None:
    none = torch.zeros(0)
    captions = ["the blue , the square", "the square , a red ball", "the !"]
    found = [WordMaps(caption.split(), none, none) for caption in captions]
    assert choose_words(found, 2) == [[1, 4], [4, 5], [0]]
    assert choose_words(found, 9) == [[0, 1, 4], [0, 1, 3, 4, 5], [0]]


def test_other_attention_is_refused(vocabulary: Vocabulary) -> None:
    model = make_model(vocabulary, has_aspect=False)
    cast(Any, model.encoder.blocks[1]).attn = torch.nn.Identity()
    with pytest.raises(UserError, match="whose maps are not known here"):
        word_maps(model, vocabulary, make_batch(vocabulary, has_aspect=False))


def test_heat_is_painted_on_its_patch_alone() -> None:
    image = torch.full((3, 10, 9), 100, dtype=torch.uint8)  # the last row and column are no patch
    maps = torch.zeros(2, 3, 4)
    maps[0, 1, 2] = 0.01  # the highest of its map is the hottest, however low
    maps[1, 0, 0], maps[1, 2, 3] = 4.0, 2.0
    painted = paint(image, maps, (3, 2))
    assert painted.shape == (2, 3, 9, 8)
    red = painted[:, 0].long() - painted[:, 1].long()
    hot = torch.zeros(9, 8, dtype=torch.bool)
    hot[3:6, 4:6] = True
    assert (red[0][hot] > 100).all()
    assert (red[0][~hot] == 0).all()
    assert red[1, 0, 0] > red[1, 8, 7] > 0


def test_an_even_map_is_pale() -> None:
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    even, peaked = paint(image, torch.stack([torch.ones(2, 2), torch.eye(2).square()]), (2, 2))
    red = [int(picture[0, 0, 0]) - int(picture[1, 0, 0]) for picture in (even, peaked)]
    assert 0 < red[0] < red[1] * 0.7


def test_a_grey_image_has_red_heat_too() -> None:
    painted = paint(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.eye(2)[None], (2, 2))
    assert painted[0, 0, 0, 0] > painted[0, 1, 0, 0]
