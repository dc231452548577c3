"""A report that is kept up to date while its run goes on."""

import time
from pathlib import Path

from data.settings import require
from data.text import count, printable
from pretrain.records.lock import read_holder
from scripts._report.writing import write_report


def watch(run: Path, output: Path, num_images: int, seconds: int) -> None:
    """Write a run's report again and again until the run ends; the last one has the pictures.

    A browser that shows the page loads it anew by itself.

    Args:
        run: Its folder.
        output: The page.
        num_images: Images to reconstruct, of the last one.
        seconds: Between two pages.

    Raises:
        UserError: The folder is no run, or the page cannot be written.
    """
    require((run / "config.yaml").is_file(), f"RUN={run} is no run: it has no config.yaml")
    every = count(seconds, "second")
    print(f"{printable(str(output))} is written every {every} until the run ends", flush=True)
    while _lives(run):
        if _has_records(run):
            write_report([run], output, None, 0, seconds)
        time.sleep(seconds)
    write_report([run], output, None, num_images)


def _lives(run: Path) -> bool:
    holder = read_holder(run)
    return holder is not None and holder.is_alive


def _has_records(run: Path) -> bool:
    log = run / "metrics.jsonl"
    return log.is_file() and b"\n" in log.read_bytes()
