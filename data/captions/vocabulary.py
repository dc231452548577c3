"""Words and their pieces: a vocabulary that is read or learnt, and captions as numbers.

The tokenizers library does the work; a vocabulary is the text of its `tokenizer.json`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.disks import explain, one_line
from data.settings import UserError, require
from data.shards import atomic_write
from data.text import name_some, printable

# It is read at each fork: with threads in use, the library would warn in each loader process.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece
    from tokenizers.processors import BertProcessing
    from tokenizers.trainers import WordPieceTrainer
except ModuleNotFoundError as error:
    raise UserError("captions need the extra `vilt`: pip install -e '.[vilt]'") from error

NO_WORD = -1
_ROLES = {  # the names of special tokens: BERT's and RoBERTa's
    "padding": ("[PAD]", "<pad>"),
    "an unknown piece": ("[UNK]", "<unk>"),
    "the start of a text": ("[CLS]", "<s>"),
    "the end of a text": ("[SEP]", "</s>"),
    "a masked piece": ("[MASK]", "<mask>"),
}
_BERT = tuple(names[0] for names in _ROLES.values())
_UNUSED = re.compile(r"\[unused\d+\]")  # BERT's reserve
_PREFIX = "##"  # of pieces within a word
_MIN_FREQUENCY = 2  # of what is merged to a piece when a vocabulary is learnt
_LONGEST_WORD = 100  # characters: a longer one is unknown as a whole, as in BERT


class Encoded(NamedTuple):
    """A caption as numbers, L = max_tokens of each.

    Attributes:
        tokens: int64 (L,): [CLS], word pieces, [SEP], then padding.
        words: int64 (L,): the number of the word that each piece belongs to, from 0; -1 for [CLS],
            [SEP] and padding.
        num_cut: Pieces that had no room.
    """

    tokens: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    num_cut: int


class Vocabulary:
    """The pieces of words, and how a text is cut into them.

    Args:
        text: A tokenizer.json of the tokenizers library.
        name: What messages call it.

    Attributes:
        pad: The number of the token that fills a text up.
        unknown: Of the token for what no piece stands for.
        cls: Of the token that begins a text.
        sep: Of the token that ends it.
        mask: Of the token that hides a piece.
        size: One above the largest number of a piece.
        special: The numbers that are no pieces of words, sorted: never masked, never drawn.
        sha256: Of `text`, in hex.

    Raises:
        UserError: The library cannot read it, it lacks a special token, or knows no words.
    """

    def __init__(self, text: str, name: str = "the vocabulary") -> None:
        self._text, self._name = text, name
        self._tokenizer = _read(text, name)
        numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        self.pad, self.unknown, self.cls, self.sep, self.mask = _special(numbers, name)
        self.size = max(numbers.values()) + 1
        self.special = tuple(sorted(self._no_pieces(numbers)))
        self.sha256 = sha256(text.encode()).hexdigest()

    def __reduce__(self) -> tuple[type["Vocabulary"], tuple[str, str]]:
        return Vocabulary, (self._text, self._name)

    @classmethod
    def load(cls, path: str | Path, key: str = "data.vocabulary") -> "Vocabulary":
        """Read a vocabulary.

        Args:
            path: A tokenizer.json of any kind, BERT's vocab.txt, or a folder that holds one.
            key: The configuration key that names it, for messages.

        Raises:
            UserError: It is not there, or no such file.
        """
        file = _file_of(Path(path))
        name = f"{key}={printable(str(path))}"
        require(file.is_file(), f"{name} is not there; give a tokenizer.json, or BERT's vocab.txt")
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise UserError(f"{name} cannot be read: {explain(error)}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not in UTF-8; give a tokenizer.json") from error
        if file.suffix == ".txt":
            text = _of_lines(text, name)
        return cls(text, name)

    @classmethod
    def learn(cls, captions: Iterable[str], size: int) -> "Vocabulary":
        """Learn word pieces from captions, which equal captions give alike, whatever their order.

        Text is cleaned and cut into words as BERT's uncased models do.

        Args:
            captions: As many as are wanted.
            size: The most pieces, special tokens among them.

        Raises:
            UserError: There is no word in them.
        """
        counts = count_words(captions)
        require(bool(counts), "the captions hold no word to learn a vocabulary from")
        return cls(_bert(_learn(counts, size), is_cased=False).to_str(pretty=True))

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json, whole or not at all; `load` gives it back."""
        with atomic_write(path) as file:
            file.write(self._text.encode())

    def encode(self, text: str, max_tokens: int) -> Encoded:
        """Cut a text into pieces; names of special tokens in it are words like others.

        Args:
            text: A caption.
            max_tokens: L; what is longer is cut.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        num_kept = min(len(encoding.ids), max_tokens - 2)
        tokens = np.full(max_tokens, self.pad, np.int64)
        tokens[0], tokens[num_kept + 1] = self.cls, self.sep
        tokens[1 : num_kept + 1] = encoding.ids[:num_kept]
        words = np.full(max_tokens, NO_WORD, np.int64)
        numbers = [NO_WORD if number is None else number for number in encoding.word_ids]
        words[1 : num_kept + 1] = np.unique(numbers[:num_kept], return_inverse=True)[1]
        return Encoded(tokens, words, len(encoding.ids) - num_kept)

    def piece(self, number: int) -> str:
        """Return a piece by its number; "" where there is none."""
        return self._tokenizer.id_to_token(number) or ""

    def text(self, numbers: Sequence[int]) -> str:
        """Join pieces to the text that they stand for; special tokens keep their names."""
        return self._tokenizer.decode(list(numbers), skip_special_tokens=False).strip()

    def _no_pieces(self, numbers: Mapping[str, int]) -> set[int]:
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {
            *(number for number, token in added if token.special),
            *(self.pad, self.unknown, self.cls, self.sep, self.mask),
            *(number for piece, number in numbers.items() if _UNUSED.fullmatch(piece)),
            *set(range(self.size)).difference(numbers.values()),
        }


def count_words(captions: Iterable[str]) -> Counter[str]:
    """Count the words of captions, cleaned and cut as `Vocabulary.learn` does."""
    clean, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return Counter(
        word
        for caption in captions
        for word, _ in cut.pre_tokenize_str(clean.normalize_str(caption))
    )


# ---------------------------------------------------------------- reading


def _file_of(path: Path) -> Path:
    inside = [path / name for name in ("tokenizer.json", "vocab.txt")]
    return next((file for file in inside if file.is_file()), path)


def _read(text: str, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no other kind
        reason = one_line(error)
        raise UserError(
            f"{name} is no tokenizer.json of the tokenizers library ({reason}); give one, or a "
            "vocab.txt of BERT"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a caption with [SEP] in it has just these characters
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # it draws at random how a word is cut
    words = tokenizer.encode("one two", add_special_tokens=False).word_ids
    require(
        len(set(words)) > 1,
        f"{name} does not cut a text into words, which are masked whole; give a tokenizer.json "
        "with a pre_tokenizer",
    )
    return tokenizer


def _special(numbers: Mapping[str, int], name: str) -> list[int]:
    """Return the numbers of the special tokens, in the order of `_ROLES`."""
    found: list[int] = []
    for role, names in _ROLES.items():
        own = [numbers[token] for token in names if token in numbers]
        require(
            bool(own),
            f"{name} has no token for {role}, {' or '.join(names)}; give a vocabulary of BERT's or "
            "RoBERTa's kind, or leave it out to learn one",
        )
        found.append(own[0])
    return found


def _of_lines(text: str, name: str) -> str:
    """Return BERT's vocab.txt, a piece a line, as a tokenizer.json; with capitals it is cased."""
    pieces = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    twice = [piece for piece, times in Counter(pieces).items() if times > 1]
    require(
        not twice,
        f"{name} holds a piece twice ({name_some(twice)}), and a vocab.txt of BERT has each once; "
        "give the file as it was published",
    )
    _special({piece: number for number, piece in enumerate(pieces)}, name)
    is_cased = any(p != p.lower() for p in pieces if not (p.startswith("[") and p.endswith("]")))
    return _bert(pieces, is_cased).to_str(pretty=True)


def _bert(pieces: Sequence[str], is_cased: bool) -> Tokenizer:
    """Make BERT's tokenizer of word pieces, in the order of their numbers."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _BERT])
    return tokenizer


# ---------------------------------------------------------------- learning


def _learn(counts: Counter[str], size: int) -> list[str]:
    """Return the pieces of words, in the order of their numbers.

    The trainer numbers characters in the order of a hash map that is drawn anew in each process,
    and so merges others where counts are equal. So it is given all of them, in order.
    """
    characters = _characters(counts, (size - len(_BERT)) // 2)
    words = {word: number for word, number in counts.items() if characters.issuperset(word)}
    within = {character for word in words for character in word[1:]}
    alphabet = [*sorted(characters), *(_PREFIX + character for character in sorted(within))]
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[*_BERT, *alphabet],
        show_progress=False,
    )
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(words), trainer)
    numbers = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(numbers, key=numbers.__getitem__)


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    for word, number in sorted(words.items()):
        yield f"{word} " * number


def _characters(counts: Mapping[str, int], at_most: int) -> set[str]:
    """Return the characters of words, the most frequent ones where there are too many."""
    characters: Counter[str] = Counter()
    for word, number in counts.items():
        for character in word:
            characters[character] += number
    ranked = sorted(characters, key=lambda character: (-characters[character], character))
    return set(ranked[:at_most])
