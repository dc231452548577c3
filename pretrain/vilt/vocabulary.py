"""The vocabulary of a run: its own, a given one, that of the weights it starts from, or learnt.

A run keeps it as `tokenizer.json` in its folder, whatever becomes of the file that was named.
"""

from pathlib import Path

from accelerate import Accelerator

from data.captions.learn import learn_vocabulary, warn_of_parts
from data.captions.samples import VOCABULARY
from data.captions.vocabulary import Vocabulary
from data.index.manifest import Manifest
from data.settings import require
from pretrain.ranks import on_main
from pretrain.records.checkpoint import newest_by_name, read_state
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.huggingface import find_vilt

NAME = "tokenizer.json"


def open_vocabulary(accelerator: Accelerator, config: ViltConfig, images: Manifest) -> Vocabulary:
    """Open the vocabulary, the same on all ranks.

    Args:
        accelerator: What `start` gave.
        config: The run's.
        images: From whose captions one is learnt, where there is none.

    Raises:
        UserError: It cannot be read, or is another than the one that `encoder.init` was trained
            with.
    """

    def find() -> Vocabulary:
        path, init = config.data.vocabulary, _of_init(config)
        kept = Path(config.run.dir, NAME)
        given = init if path is None else Vocabulary.load(path)
        if given is not None:
            _check_same(given, init, config)
            warn_of_parts(given, images, config.data.caption_key, "data.shards")
            return given
        if kept.is_file():
            return Vocabulary.load(kept, "run.dir")
        require(
            find_vilt(config.encoder.init) is None,
            f"encoder.init={config.encoder.init} has words, and no tokenizer.json or vocab.txt "
            "beside them; put it there, or set data.vocabulary",
        )
        return learn_vocabulary(images, config.data)

    return on_main(accelerator, find)


def _of_init(config: ViltConfig) -> Vocabulary | None:
    """Return the vocabulary of what `encoder.init` names; None where it has none."""
    init = config.encoder.init
    files = [Path(init or "", name) for name in (NAME, "vocab.txt")]
    has_one = init not in (None, "none") and any(file.is_file() for file in files)
    return vocabulary_of(files[0].parent, "encoder.init") if has_one else None


def vocabulary_of(path: str | Path, key: str) -> Vocabulary:
    """Load the vocabulary of a model's folder.

    Args:
        path: A run, or a folder that transformers wrote.
        key: What names it, for messages.

    Raises:
        UserError: There is none; or it is another one than the run was trained with.
    """
    vocabulary = Vocabulary.load(path, key)
    newest = newest_by_name(Path(path))
    trained = None if newest is None else read_state(newest).get(VOCABULARY)
    require(
        trained in (None, vocabulary.sha256),
        f"{key}={path}: its {NAME} is not the vocabulary that the run was trained with, whose "
        "pieces have other numbers; put the run's own back",
    )
    return vocabulary


def _check_same(vocabulary: Vocabulary, init: Vocabulary | None, config: ViltConfig) -> None:
    require(
        init is None or vocabulary.sha256 == init.sha256,
        f"data.vocabulary={config.data.vocabulary} is not the vocabulary of "
        f"encoder.init={config.encoder.init}, whose pieces have other numbers; leave "
        "data.vocabulary out",
    )


def keep_vocabulary(accelerator: Accelerator, folder: Path, vocabulary: Vocabulary) -> None:
    """Write the vocabulary into a run's folder, once."""
    path = folder / NAME
    has_trained = newest_by_name(folder) is not None  # then a resume compares the two
    on_main(accelerator, lambda: (has_trained and path.is_file()) or vocabulary.save(path))
