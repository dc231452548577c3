"""Retrieval by an image-text run: the captions of an image among all, and the image of a caption.

    python finetune/vilt/retrieve.py RUN SHARDS [--number 200] [--rerank 20] [--out FOLDER]

RUN is a run.dir of pretrain/vilt/run.py. Its head of matching scores each image with each caption
of the first --number samples. How many pairs that are, and how long they take, is said before it
starts; twice as many samples take four times as long.

--rerank 20 reads the 20 best captions of each image, and the 20 best images of each caption, again:
each word of the caption is masked once and predicted from the others and the image. What the image
makes of the caption's likelihood, against the other images, is added to the head's log odds. It
takes a run with loss.words, and the table has both orders.

All captions of a sample are queries, and an image is answered by any of its own. A caption that
several images have is right for each of them. recall@K is what of the queries have a right answer
among their first K, and chance@K what a random order gives. Equal scores count against the model.

FOLDER (by default RUN/retrieval) gets result.json, table.md, and ranks.json: each query with its
rank and its first answers. The ranks of `accelerate launch -q finetune/vilt/retrieve.py ...` share
the images; the figures are the same.

To train for retrieval, give the pretrained run matching alone, and retrieve with what comes out:

    python pretrain/vilt/run.py encoder.init=RUN loss.words=0 data.shards=SHARDS run.dir=NEW

Status 0: done. 1: stopped. 2: a mistake in the arguments or in SHARDS, or more than --hours.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import (
    OneLineParser,
    memory_errors,
    positive,
    require,
    require_utf8,
    run_entry_point,
)
from data.shards import atomic_write
from data.storage.locations import expand_home, user_path

_RANKS = "ranks.json"


def main(arguments: list[str]) -> None:
    """Run `python finetune/vilt/retrieve.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    folder = _folder(options)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from finetune.results import make_table, write_result
        from finetune.vilt.found import cells_of, ranks_of, result_of
        from finetune.vilt.searching import RetrieveConfig, search

    config = RetrieveConfig(
        options.run,
        options.shards,
        folder,
        number=options.number,
        caption_key=options.caption_key,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
        hours=options.hours,
        rerank=options.rerank,
    )
    with memory_errors("a smaller --batch-size"):
        found = search(config)
    if found is None:  # another rank than the first
        return
    result = result_of(found)
    table = make_table(cells_of(result))
    write_result(folder, result, table)
    with atomic_write(folder / _RANKS) as file:
        file.write((json.dumps(ranks_of(found), indent=1) + "\n").encode())
    print(f"{table}\nthe result is in {folder}/result.json, each query in {folder}/{_RANKS}")


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.out or Path(options.run, "retrieval")
    require(
        not (folder / "config.yaml").exists(),
        f"--out={folder} holds a run, whose files would be replaced; name another folder",
    )
    return folder


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("run", type=expand_home, metavar="RUN", help="an image-text run")
    option("shards", nargs="+", metavar="SHARDS", help="a folder of shards, a pattern, or several")
    option("--number", type=positive, default=200, help="search among the first so many (200)")
    option("--rerank", type=positive, default=0, metavar="K", help="read the K best again by words")
    option("--caption-key", metavar="KEY", help="of KEY.json (without: KEY.txt, a caption a line)")
    option("--out", type=user_path, metavar="FOLDER", help="folder for the result (RUN/retrieval)")
    option("--hours", type=float, default=1.0, help="refuse what takes longer (1)")
    option("--batch-size", type=positive, default=64, help="captions a forward pass (64)")
    option("--workers", type=int, default=0, help="loader processes of each rank (0)")
    option("--precision", default="fp32", choices=("fp32", "bf16"), help="fp32 (default) or bf16")
    options = parser.parse_args(arguments)
    require(options.hours > 0, f"--hours={options.hours} is not above 0; try 1")
    require(options.workers >= 0, f"--workers={options.workers} is below 0; 0 needs no process")
    return options


if __name__ == "__main__":
    run_entry_point(main)
