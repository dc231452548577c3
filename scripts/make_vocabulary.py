"""Learn a vocabulary of word pieces from the captions of shards.

    python scripts/make_vocabulary.py SHARDS --out vocabulary.json [--size 30522]

SHARDS are those that pretrain/vilt/run.py reads: a folder of shards, a pattern, or several. Each
sample has KEY.txt with a caption a line, or KEY.json with a key that --caption-key names. Where a
run is to read captions and another sentences, learn from both: `--txt --caption-key KEY`. Text is
cleaned and cut into words as BERT's uncased models do. Equal captions give an equal file.

The file is a tokenizer.json of the tokenizers library: data.vocabulary=vocabulary.json takes it.
A run that is given none learns its own from the captions, as this does by default.

Status 0: done. 1: stopped, such as by a full disk. 2: a mistake in what was typed or in SHARDS.
"""

import argparse
import logging
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.captions.config import CaptionedDataConfig
from data.processes import importing
from data.settings import OneLineParser, positive, require, require_utf8, run_entry_point
from data.storage.locations import user_path
from data.text import count, percent, printable

_CAPTIONS = 100_000


def main(arguments: list[str]) -> None:
    """Run `python scripts/make_vocabulary.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from data.captions.check import check_captions
        from data.captions.learn import read_some, whole_ratio
        from data.captions.vocabulary import Vocabulary
        from data.index.open import open_manifest

    keys: list[str | None] = options.caption_key or []
    configs = [
        CaptionedDataConfig(caption_key=key, vocabulary_size=options.size)
        for key in (keys if keys and not options.txt else [None, *keys])
    ]
    config = configs[0]
    manifest = open_manifest(options.shards, "SHARDS", config.storage)
    captions: list[str] = []
    for own in configs:
        check_captions(manifest, own, "SHARDS", "--caption-key")
        captions += read_some(manifest, own.caption_key, "SHARDS", options.captions)
    vocabulary = Vocabulary.learn(captions, config.vocabulary_size)
    vocabulary.save(options.out)
    whole = percent(whole_ratio(vocabulary, captions))
    print(
        f"{count(vocabulary.size, 'piece')} from {count(len(captions), 'caption')}; {whole} of "
        f"their words are whole; written to {printable(str(options.out))}"
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("shards", nargs="+", metavar="SHARDS", help="a folder of shards, a pattern, or several")
    option("--out", type=user_path, required=True, metavar="FILE.json", help="the vocabulary")
    option(
        "--caption-key",
        action="append",
        metavar="KEY",
        help="of KEY.json; may be repeated (without: KEY.txt, a caption a line)",
    )
    option("--txt", action="store_true", help="KEY.txt too, beside --caption-key")
    option("--size", type=positive, default=30522, help="the most pieces (30522, as BERT has)")
    option("--captions", type=positive, default=_CAPTIONS, help="the most read of each (100000)")
    options = parser.parse_args(arguments)
    out: Path = options.out
    require(not out.exists(), f"--out={out} is there already; delete it, or give another name")
    require(out.parent.is_dir(), f"--out={out}: there is no folder {out.parent}; make it")
    return options


if __name__ == "__main__":
    run_entry_point(main)
