"""The vocabulary of a run: its own, a given one, that of the weights it starts from, or learnt.

A run keeps it as `tokenizer.json` in its folder, whatever becomes of the file that was named.
"""

from pathlib import Path

from accelerate import Accelerator

from data.captions.learn import learn_vocabulary
from data.captions.vocabulary import Vocabulary
from data.index.manifest import Manifest
from data.settings import require
from pretrain.ranks import on_main
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
        if path is not None:
            vocabulary = Vocabulary.load(path)
            _check_same(vocabulary, init, config)
            return vocabulary
        if kept.is_file():
            return Vocabulary.load(kept, "run.dir")
        if init is not None:
            return init
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
    return Vocabulary.load(files[0].parent, "encoder.init") if has_one else None


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
    on_main(accelerator, lambda: path.is_file() or vocabulary.save(path))
