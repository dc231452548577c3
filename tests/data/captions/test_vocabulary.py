"""A vocabulary: learnt alike in each process, read in any form, with whole words."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data.captions.vocabulary import Vocabulary
from data.settings import UserError

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LEARN = """
import random
from data.captions.vocabulary import Vocabulary
generator = random.Random(0)
words = ["".join(generator.choices("abcdef", k=generator.randint(1, 6))) for _ in range(600)]
captions = [" ".join(generator.choices(words, k=8)) for _ in range(200)]
generator.shuffle(captions)
print(Vocabulary.learn(captions, 300).sha256)
"""


def pieces_of(vocabulary: Vocabulary, text: str, max_tokens: int = 40) -> list[str]:
    encoded = vocabulary.encode(text, max_tokens)
    return [vocabulary.piece(n) for n in encoded.tokens.tolist() if n != vocabulary.pad]


def words_of(vocabulary: Vocabulary, text: str, max_tokens: int = 40) -> list[list[str]]:
    """Return the pieces of each word."""
    encoded = vocabulary.encode(text, max_tokens)
    words: dict[int, list[str]] = {}
    for token, word in zip(encoded.tokens.tolist(), encoded.words.tolist(), strict=True):
        if word >= 0:
            words.setdefault(word, []).append(vocabulary.piece(token))
    assert list(words) == list(range(len(words)))
    return list(words.values())


def write_vocab_txt(path: Path, pieces: tuple[str, ...]) -> Path:
    path.write_text("".join(f"{piece}\n" for piece in pieces))
    return path


def roberta(texts: list[str], **model: Any) -> Tokenizer:
    """Make a byte-level BPE with RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# ---------------------------------------------------------------- learning


def test_equal_captions_give_equal_bytes_in_each_process() -> None:
    starts = [[sys.executable, "-c", LEARN] for _ in range(2)]
    found = [subprocess.run(start, capture_output=True, text=True, check=True) for start in starts]
    assert found[0].stdout == found[1].stdout
    assert [one.stderr for one in found] == ["", ""]


def test_the_order_of_the_captions_changes_nothing() -> None:
    captions = [f"{a} {b}" for a in ("one", "two", "three") for b in ("cats", "dogs", "cars")]
    mixed = random.Random(1).sample(captions, len(captions))
    assert Vocabulary.learn(captions, 60).sha256 == Vocabulary.learn(mixed, 60).sha256


def test_frequent_words_become_whole_and_rare_ones_pieces() -> None:
    vocabulary = Vocabulary.learn(["the red square"] * 5 + ["the dull heart"], 300)
    assert words_of(vocabulary, "the red square") == [["the"], ["red"], ["square"]]
    [pieces] = words_of(vocabulary, "dull")
    assert len(pieces) > 1
    assert "".join(piece.removeprefix("##") for piece in pieces) == "dull"


def test_it_has_at_most_the_pieces_that_were_asked_for() -> None:
    text = "".join(chr(0x4E00 + number) for number in range(300)) + "aaaa" * 3
    vocabulary = Vocabulary.learn([text], 105)
    assert vocabulary.size <= 105
    assert pieces_of(vocabulary, "aaaa")[1:-1] != ["[UNK]"]  # the most frequent characters stay


def test_captions_without_a_word_are_refused() -> None:
    with pytest.raises(UserError, match="no word to learn a vocabulary from"):
        Vocabulary.learn(["", " "], 100)


# ---------------------------------------------------------------- encoding


def test_punctuation_accents_and_chinese(vocabulary: Vocabulary) -> None:
    learnt = Vocabulary.learn(["don't: a café-bar, 中文 naïve Straße"] * 3, 200)
    found = ["".join(word) for word in words_of(learnt, "Don't: A CAFÉ-bar, 中文 naive")]
    assert found == ["don", "'", "t", ":", "a", "cafe", "-", "bar", ",", "中", "文", "naive"]


def test_a_text_is_framed_padded_and_numbered(vocabulary: Vocabulary) -> None:
    encoded = vocabulary.encode("a red square", 8)
    assert pieces_of(vocabulary, "a red square") == ["[CLS]", "a", "red", "square", "[SEP]"]
    assert encoded.tokens.tolist()[5:] == [vocabulary.pad] * 3
    assert encoded.words.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]
    assert encoded.num_cut == 0


def test_a_long_text_is_cut_and_the_cut_is_counted(vocabulary: Vocabulary) -> None:
    encoded = vocabulary.encode("a red square is left of", 5)
    assert [vocabulary.piece(n) for n in encoded.tokens] == ["[CLS]", "a", "red", "square", "[SEP]"]
    assert encoded.words.tolist() == [-1, 0, 1, 2, -1]
    assert encoded.num_cut == 3


def test_an_empty_text_has_no_word(vocabulary: Vocabulary) -> None:
    encoded = vocabulary.encode(" \u200b", 4)
    assert encoded.tokens.tolist() == [vocabulary.cls, vocabulary.sep, *[vocabulary.pad] * 2]
    assert encoded.words.tolist() == [-1] * 4


def test_names_of_special_tokens_in_a_caption_are_plain_text(vocabulary: Vocabulary) -> None:
    encoded = vocabulary.encode("a [SEP] [MASK] square [PAD]", 40)
    inside = encoded.tokens[encoded.words >= 0]
    assert not {vocabulary.sep, vocabulary.mask, vocabulary.pad} & set(inside.tolist())


def test_special_tokens_are_neither_masked_nor_drawn(vocabulary: Vocabulary) -> None:
    assert [vocabulary.piece(number) for number in vocabulary.special] == list(BERT)
    assert vocabulary.piece(vocabulary.size) == ""


# ---------------------------------------------------------------- reading


def test_what_is_saved_comes_back(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "tokenizer.json")
    for again in (
        Vocabulary.load(tmp_path / "tokenizer.json"),
        Vocabulary.load(tmp_path),
        pickle.loads(pickle.dumps(vocabulary)),
    ):
        assert again.sha256 == vocabulary.sha256
        text = "the blue circle's unseen words"
        assert pieces_of(again, text) == pieces_of(vocabulary, text)


@pytest.mark.parametrize("capital", [False, True])
def test_a_vocab_txt_of_bert(tmp_path: Path, capital: bool) -> None:
    more = ("[unused0]", "a", "the", "red", "##dish", "square", *(["Red"] if capital else []))
    path = write_vocab_txt(tmp_path / "vocab.txt", (*BERT, *more))
    vocabulary = Vocabulary.load(path)
    assert words_of(vocabulary, "Reddish square") == (
        [["Red", "##dish"], ["square"]] if capital else [["red", "##dish"], ["square"]]
    )
    assert vocabulary.size == 5 + len(more)
    assert vocabulary.piece(vocabulary.special[-1]) == "[unused0]"


def test_a_byte_level_bpe_with_the_tokens_of_roberta(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = roberta(["a red square is red"] * 3)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(path))
    vocabulary = Vocabulary.load(path)
    words = words_of(vocabulary, "a red squash <mask>")
    assert ["".join(word).replace("Ġ", " ").strip() for word in words] == [
        *("a", "red", "squash"),
        *("<", "mask", ">"),
    ]
    ids = vocabulary.cls, vocabulary.pad, vocabulary.sep, vocabulary.unknown, vocabulary.mask
    assert ids == (0, 1, 2, 3, 4)
    assert vocabulary.special == (0, 1, 2, 3, 4)


def test_dropout_of_pieces_is_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    roberta(["squares and circles"] * 3, dropout=0.5).save(str(path))
    vocabulary = Vocabulary.load(path)
    assert len({vocabulary.encode("squares", 20).tokens.tobytes() for _ in range(20)}) == 1


def test_a_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    message = r"data\.vocabulary=.* is not there; give a tokenizer\.json, or BERT's vocab\.txt"
    for path in (tmp_path / "none.json", tmp_path):  # a folder may hold one
        with pytest.raises(UserError, match=message):
            Vocabulary.load(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "is no tokenizer.json of the tokenizers library"),
        ("a.json", "{", "is no tokenizer.json of the tokenizers library"),
        ("vocab.txt", "a\nb\n", r"has no token for padding, \[PAD\] or <pad>"),
        ("vocab.txt", "[PAD]\na\na\n", r"holds a piece twice \(a\)"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Vocabulary.load(tmp_path / name)


def test_a_vocabulary_that_knows_no_words(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    roberta(["a red square"] * 3).save(str(path))
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not cut a text into words"):
        Vocabulary.load(path)
