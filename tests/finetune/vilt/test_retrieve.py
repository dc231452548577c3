"""Retrieval as users run it: exact on any ranks, its recall that of a slow loop over all pairs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

import finetune.vilt.retrieve
import pretrain.vilt.run
from data.batch import Request
from data.captions.samples import CaptionedSamples
from data.captions.vocabulary import Encoded
from data.index.open import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard
from finetune.vilt.reranking import candidates_of, rerank
from pretrain.vilt.pairs import ImageTokens
from pretrain.vilt.saved import Vilt, load_vilt
from tests.conftest import BAD, make_captioned, make_png, make_sample
from tests.finetune.vilt.conftest import pretrain_on
from tests.launching import run_ranks

pytestmark = pytest.mark.slow

NUMBERS = range(12, 24)
GOOD = [number for number in NUMBERS if number != BAD]
SHARED = "a picture that two samples share"


def make_found(number: int) -> ImageFile:
    """Make a sample with two captions, and with a third that some share; one is no image."""
    sample = make_captioned(number)
    more = (SHARED,) if number in (13, 21) else (sample.captions[0],) if number == 15 else ()
    return replace(sample, captions=sample.captions + more)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gallery") / "test.tar"
    write_shard(path, map(make_found, NUMBERS))
    return path


def start(*told: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.vilt.retrieve.main(list(told))


def read(folder: Path, name: str = "result.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


class Slowly(NamedTuple):
    """A model beside each image that can be read and each caption, a pair at a time."""

    vilt: Vilt
    images: list[ImageTokens]
    owned: list[tuple[int, str]]  # each caption, and whose it is

    @classmethod
    def open(cls, run: Path, shard: Path) -> "Slowly":
        vilt = load_vilt(run)
        manifest = open_manifest(str(shard), "SHARDS")
        size = vilt.model.encoder.patch_embed.img_size
        how: dict[str, Any] = {"seed": 0, "vocabulary": vilt.vocabulary, "is_training": False}
        samples = CaptionedSamples(manifest, size, config=vilt.config.data, patch_size=4, **how)
        places = [number - NUMBERS[0] for number in GOOD]
        tensors = [samples[Request(0, place, place + 1)].tensors for place in places]
        owned = [(n, text) for n in GOOD for text in make_found(n).captions]
        return cls(vilt, [vilt.model.image_tokens(of_one) for of_one in tensors], owned)

    def scores(self) -> np.ndarray:
        """Score by the head: (images, captions)."""
        return self._each(self._score)

    def likelihoods(self) -> np.ndarray:
        """Return log P(caption | image), a masked word at a time: (images, captions)."""
        return self._each(self._likelihood)

    def _each(self, of_pair: Callable[[ImageTokens, Encoded], float]) -> np.ndarray:
        vocabulary, most = self.vilt.vocabulary, self.vilt.model.max_tokens
        captions = [vocabulary.encode(text, most) for _, text in self.owned]
        with torch.no_grad():
            return np.array([[of_pair(i, caption) for caption in captions] for i in self.images])

    def _score(self, images: ImageTokens, caption: Encoded) -> float:
        model = self.vilt.model
        [[other, own]] = model.match(model.fuse(torch.from_numpy(caption.tokens)[None], images))
        return float(own - other)

    def _likelihood(self, images: ImageTokens, caption: Encoded) -> float:
        model, vocabulary, config = self.vilt
        tokens, words = torch.from_numpy(caption.tokens), torch.from_numpy(caption.words)
        total, num_masks = 0.0, round(1 / config.text.ratio)
        for number in range(num_masks):
            is_masked = (words >= 0) & (words % num_masks == number)
            shown = torch.where(is_masked, vocabulary.mask, tokens)[None]
            assert model.words is not None
            [logits] = model.words(model.fuse(shown, images).text, model.text.words.weight)
            for at in is_masked.nonzero()[:, 0].tolist():
                total += float(logits[at].log_softmax(0)[tokens[at]])
        return total


def recall_slowly(scores: np.ndarray, owned: list[tuple[int, str]], at: int) -> tuple[float, float]:
    texts = [text for _, text in owned]
    having = {text: {n for n, other in owned if other == text} for text in texts}
    images = [
        any(n in having[texts[c]] for c in np.argsort(-scores[row])[:at])
        for row, n in enumerate(GOOD)
    ]
    captions = [
        any(GOOD[row] in having[text] for row in np.argsort(-scores[:, c])[:at])
        for c, text in enumerate(texts)
    ]
    return float(np.mean(images)), float(np.mean(captions))


@pytest.mark.parametrize(
    "form", [["data.long_side=24"], pytest.param([], marks=pytest.mark.faults)]
)
def test_recall_is_that_of_all_single_pairs(
    tmp_path: Path, asked: Path, encoder: list[str], gallery: Path, form: list[str]
) -> None:
    run = tmp_path / "run"
    pretrain_on(asked, encoder, "optim.steps=4", "optim.lr=5e-3", *form, f"run.dir={run}")
    start(str(run), str(gallery), "--batch-size", "5")
    found, slowly = read(run / "retrieval"), Slowly.open(run, gallery)
    scores, owned = slowly.scores(), slowly.owned
    assert (found["images"], found["captions"], found["num_bad"]) == (11, len(owned), 1)
    assert found["distinct_captions"] == len({text for _, text in owned})
    for at in (1, 5, 10):
        images, captions = recall_slowly(scores, owned, at)
        assert found["image_to_text"][f"recall@{at}"] == pytest.approx(images)
        assert found["text_to_image"][f"recall@{at}"] == pytest.approx(captions)
    ranks = read(run / "retrieval", "ranks.json")
    shared = next(query for query in ranks["captions"] if query["caption"] == SHARED)
    assert shared["images"] == ["test.tar/013", "test.tar/021"]
    assert len(ranks["images"]) == 11
    assert all(query["rank"] >= 1 and len(query["first"]) == 5 for query in ranks["images"])
    is_first = [query["first"][0] in query["captions"] for query in ranks["images"]]
    assert np.mean(is_first) == pytest.approx(found["image_to_text"]["recall@1"])


def test_all_pairs_read_again_are_ordered_by_head_and_words(
    tmp_path: Path, pretrained: Path, gallery: Path
) -> None:
    told = [str(pretrained), str(gallery), "--batch-size", "5"]
    start(*told, "--out", f"{tmp_path}/head")
    start(*told, "--out", f"{tmp_path}/words", "--rerank", "50")
    found, head = read(tmp_path / "words"), read(tmp_path / "head")
    slowly = Slowly.open(pretrained, gallery)
    likelihoods, owned = slowly.likelihoods(), slowly.owned
    scores = slowly.scores() + likelihoods - np.log(np.exp(likelihoods).sum(0))  # over the images
    for at in (1, 5, 10):
        images, captions = recall_slowly(scores, owned, at)
        assert found["image_to_text"][f"recall@{at}"] == pytest.approx(images)
        assert found["text_to_image"][f"recall@{at}"] == pytest.approx(captions)
    assert found["by_head"] == {way: head[way] for way in ("image_to_text", "text_to_image")}
    assert read(tmp_path / "words", "ranks.json") != read(tmp_path / "head", "ranks.json")
    rows = (tmp_path / "words" / "table.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "captions of an image, by the head alone",
        "captions of an image, reranked",
        "the image of a caption, by the head alone",
        "the image of a caption, reranked",
    ]


def test_what_was_no_candidate_stays_behind_in_its_order() -> None:
    scores = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [5, 5, 5, 4]], np.float32)
    is_candidate = candidates_of(scores, 1)
    assert is_candidate.tolist() == [
        [True, False, False, False],
        [False, False, False, True],
        [True, True, True, True],
    ]
    likelihoods = np.where(is_candidate, np.float32(-2), np.float32(np.nan))
    likelihoods[2, 0] = -1
    reranked = rerank(scores, likelihoods)
    log_sum = np.log(np.exp(-1) + np.exp(-2))
    expected = [3 - 2 - log_sum, 3 - np.log(2), 5 - 1 - log_sum, 5, 5, 4 - np.log(2)]
    assert reranked[is_candidate] == pytest.approx(expected)
    rest = reranked[~is_candidate]
    assert rest.max() < reranked[is_candidate].min()
    assert np.argsort(rest).tolist() == np.argsort(scores[~is_candidate]).tolist()


@pytest.mark.parametrize("more", [[], ["--rerank", "3"]])
def test_two_ranks_find_the_same_to_the_bit(
    tmp_path: Path, pretrained: Path, gallery: Path, more: list[str]
) -> None:
    for world in (1, 2):
        told = [str(pretrained), str(gallery), "--number", "10", "--out", f"{tmp_path}/{world}"]
        told += more
        run_ranks(told, world, tmp_path / "logs", script="finetune.vilt.retrieve")
    for name in ("result.json", "ranks.json", "table.md"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    assert read(tmp_path / "1")["images"] == 10


def test_a_run_is_trained_for_retrieval_alone(
    tmp_path: Path, asked: Path, pretrained: Path, gallery: Path
) -> None:
    told = [f"encoder.init={pretrained}", "loss.words=0", f"data.shards={asked}/train.tar"]
    told += ["data.max_tokens=12", "data.max_bad_ratio=0.2", "data.workers=0", "optim.lr=0"]
    told += ["optim.steps=1", "optim.batch_size=12", "run.threads=1", f"run.dir={tmp_path}/run"]
    pretrain.vilt.run.main(told)
    with pytest.raises(UserError, match=r"--rerank=9 orders by the words of a caption, and RUN="):
        start(f"{tmp_path}/run", str(gallery), "--rerank", "9")
    for run in (pretrained, tmp_path / "run"):
        start(str(run), str(gallery), "--out", f"{tmp_path}/{run.name}-{run.parent.name}")
    [first, second] = sorted(tmp_path.glob("run-*"))
    assert read(first)["text_to_image"] == read(second)["text_to_image"]  # nothing was lost


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["ASKED", "GALLERY"], "is no image-text run; name a run.dir of pretrain/vilt/run.py"),
        (["RUN", "PLAIN"], "SHARDS: no .txt in the first 4 samples"),
        (
            ["RUN", "GALLERY", "--hours", "1e-9"],
            "12 images x 25 distinct captions = 300 pairs w",
        ),
        (
            ["RUN", "GALLERY", "--hours", "1e-9", "--rerank", "5"],
            "300 pairs, of which at most 185 are read 7 times again would take about",
        ),
        (["RUN", "GALLERY", "--hours", "0"], "--hours=0.0 is not above 0; try 1"),
        (
            ["RUN", "GALLERY", "--caption-key", "x"],
            "leave --caption-key=x out, and KEY.txt",
        ),
        (["RUN", "GALLERY", "--out", "RUN"], "holds a run, whose files would be replaced"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, asked: Path, pretrained: Path, gallery: Path, more: list[str], text: str
) -> None:
    write_shard(tmp_path / "plain.tar", map(make_sample, range(4)))
    places = {"ASKED": asked, "GALLERY": gallery, "PLAIN": tmp_path / "plain.tar"}
    places |= {"RUN": pretrained}
    told = [str(places.get(word, word)) for word in more]
    with pytest.raises(UserError) as caught:
        start(*told)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_the_head_of_matching_is_refused(
    tmp_path: Path, asked: Path, encoder: list[str], gallery: Path
) -> None:
    run = tmp_path / "run"
    without = ["loss.matching=0", "loss.alignment=0", "optim.steps=1", f"run.dir={run}"]
    pretrain_on(asked, encoder, *without)
    with pytest.raises(UserError, match=r"was trained with loss\.matching=0, and its head of mat"):
        start(str(run), str(gallery))


def test_images_without_a_caption_are_named(
    tmp_path: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [ImageFile(f"{n}", "png", make_png(n), captions=(f"number {n}",)) for n in range(3)]
    samples.append(ImageFile("3", "png", make_png(3), captions=()))
    write_shard(tmp_path / "test.tar", samples)
    start(str(pretrained), f"{tmp_path}/test.tar", "--out", f"{tmp_path}/out")
    assert "SHARDS: 1 of 4 images cannot be used, such as test.tar/3: no caption" in caplog.text
    assert read(tmp_path / "out")["images"] == 3
