"""make_vocabulary.py: a file that a run takes, and what is said of it."""

from pathlib import Path

import pytest

from data.captions.config import CaptionedDataConfig
from data.captions.learn import learn_vocabulary
from data.captions.vocabulary import Vocabulary
from data.index.open import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard
from scripts.make_vocabulary import main
from tests.conftest import make_png

TEXTS = ["a red square", "a blue square", "a red circle"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(
        tmp_path / "a.tar",
        [ImageFile(f"{n}", "png", make_png(n), captions=(text,)) for n, text in enumerate(TEXTS)],
    )
    return tmp_path


def test_it_is_what_a_run_learns_by_itself(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shards / "vocabulary.json"
    main([str(shards), "--out", str(out), "--size", "200"])
    said = capsys.readouterr().out
    vocabulary = Vocabulary.load(out)
    # "circle" and "blue" occur once, and so are in pieces
    assert said == (
        f"{vocabulary.size} pieces from 3 captions; 77.8 % of their words are whole; written to "
        f"{out}\n"
    )
    config = CaptionedDataConfig(vocabulary_size=200)
    learnt = learn_vocabulary(open_manifest(str(shards), "data.shards"), config)
    assert learnt.sha256 == vocabulary.sha256


def test_captions_and_sentences_share_one(tmp_path: Path) -> None:
    record = {"question": "where is it", "answer": "another place"}
    images = [
        ImageFile(f"{n}", "png", make_png(n), captions=(text,), record=record)
        for n, text in enumerate(TEXTS)
    ]
    write_shard(tmp_path / "a.tar", images)
    keys = ["--caption-key", "question", "--caption-key", "answer"]
    for own, words in ((keys, "where place"), ([*keys, "--txt"], "where place square")):
        out = tmp_path / f"{len(own)}.json"
        main([f"{tmp_path}/a.tar", "--out", str(out), *own])
        vocabulary = Vocabulary.load(out)
        pieces = {vocabulary.piece(number) for number in range(vocabulary.size)}
        assert {"where", "place", "square"} & pieces == set(words.split())


def test_no_more_captions_are_read_than_asked_for(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"{shards}/a.tar", "--out", f"{shards}/v.json", "--captions", "2"])
    assert "from 2 captions;" in capsys.readouterr().out


def test_samples_without_a_caption_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        ImageFile("0", "png", make_png(0)),
        ImageFile("1", "png", make_png(1), captions=("a",)),
    ]
    write_shard(tmp_path / "a.tar", samples)
    with caplog.at_level("INFO"):
        main([str(tmp_path), "--out", f"{tmp_path}/v.json"])
    assert "from 1 caption;" in capsys.readouterr().out
    told = "passed over 1 sample without a usable caption, the first: a.tar/0: no caption: it has"
    assert told in caplog.text


def test_what_is_there_is_kept(shards: Path) -> None:
    (shards / "v.json").write_text("mine")
    with pytest.raises(UserError, match=r"--out=.*v\.json is there already; delete it"):
        main([str(shards), "--out", f"{shards}/v.json"])
    with pytest.raises(UserError, match=r"there is no folder .*none; make it"):
        main([str(shards), "--out", f"{shards}/none/v.json"])


def test_shards_without_captions_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("0", "png", make_png(0))])
    with pytest.raises(UserError, match=r"SHARDS: no \.txt in the only sample, but \.png"):
        main([str(tmp_path), "--out", f"{tmp_path}/v.json"])


def test_nothing_but_empty_captions(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("0", "png", make_png(0), captions=("-",))])
    content = (tmp_path / "a.tar").read_bytes().replace(b"-\n", b" \n")
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"no sample has a caption .*the first: a\.tar/0: \.txt: "):
        main([str(tmp_path), "--out", f"{tmp_path}/v.json"])
