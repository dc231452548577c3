"""A run's folder: whose files are there, on what disk, and a run that was finished before."""

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

import finetune.run
import pretrain.run
from data.settings import UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import user_cache
from pretrain.encoder import load_encoder
from pretrain.records import checkpoint
from tests.conftest import make_png


def train(tiny: list[str], run: Path, *more: str) -> None:
    pretrain.run.main([*tiny, "optim.steps=8", "run.eval_every=0", f"run.dir={run}", *more])


def _other(folder: Path) -> str:
    path = folder / "other.tar"
    write_shard(path, [ImageFile(f"{n}", "png", make_png(n, (8, 8)), 0) for n in range(16)])
    return str(path)


# ---------------------------------------------------------------- whose files


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "encoder/model.safetensors"])
def test_files_of_the_users_are_left_alone(tmp_path: Path, tiny: list[str], name: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("run: {seed: 0}\n")
    with pytest.raises(UserError, match=r"/run holds \S+, which no run has written and this one"):
        train(tiny, tmp_path / "run")
    assert [file for file in (tmp_path / "run").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "run: {seed: 0}\n"


def test_a_run_goes_on_from_its_own_config(tmp_path: Path, tiny: list[str]) -> None:
    """Also where it was copied without its lock, and where it has no checkpoint yet."""
    run = tmp_path / "run"
    train(tiny, run, "optim.steps=4", "run.checkpoint_every=4")
    (run / ".lock").unlink()
    pretrain.run.main([str(run / "config.yaml"), f"run.dir={run}"])
    (run / ".lock").unlink()
    for path in sorted((run / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "encoder").unlink()
    pretrain.run.main([str(run / "config.yaml"), f"run.dir={run}"])
    assert checkpoint.recover_newest(run) is not None


def test_a_run_of_another_kind_is_named(
    tmp_path: Path, tiny: list[str], tiny_finetune: list[str]
) -> None:
    train(tiny, tmp_path / "run", "optim.steps=4")
    with pytest.raises(UserError, match=r"/run holds a pretraining run, and this one is not; name"):
        finetune.run.main([*tiny_finetune, f"run.dir={tmp_path}/run"])


def test_a_start_that_is_refused_leaves_the_configuration(tmp_path: Path, tiny: list[str]) -> None:
    run = tmp_path / "run"
    train(tiny, run)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"was trained on another stream"):
        train(tiny, run, "data.shards=" + _other(tmp_path))
    assert (run / "config.yaml").read_bytes() == before


def test_a_path_may_be_written_otherwise(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny, tmp_path / "first")
    for init in ("first", "first/", "./first", f"{tmp_path}/first"):
        train(tiny, tmp_path / "second", f"encoder.init={init}")
    with pytest.raises(UserError, match=r"encoder.init was \S+first, now second;"):
        train(tiny, tmp_path / "second", "encoder.init=second")


# ---------------------------------------------------------------- disks that lack something


def test_a_disk_without_links(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RUN/encoder is a copy; the run resumes, and goes on with a link on another disk."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def symlink(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        patch.setattr(os, "symlink", symlink)
        train(tiny, run, "optim.steps=4", "run.resume=never", "run.checkpoint_every=2")
        assert not (run / "encoder").is_symlink()
        assert (run / "encoder/.copy-of").read_text() == "step-00000004\n"
        train(tiny, run, "optim.steps=4", "run.resume=must", "run.checkpoint_every=2")
    expected = load_encoder(run / "checkpoints/step-00000004/encoder").state_dict()
    for name, value in load_encoder(run).state_dict().items():
        assert torch.equal(value, expected[name])
    train(tiny, run, "optim.steps=4")
    assert (run / "encoder").is_symlink()
    assert not list(run.glob(".encoder*"))


def test_a_damaged_checkpoint_is_named_once_and_each_file_is_hashed_once(
    tmp_path: Path,
    tiny: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also under run.resume=must, which looks at the checkpoints before the resume does."""
    hashed: list[Path] = []
    hash_file = checkpoint.hash_file
    run = tmp_path / "run"
    train(tiny, run, "optim.steps=4", "run.checkpoint_every=2")
    newest = run / "checkpoints/step-00000004"
    (newest / "model.safetensors").write_bytes(b"")
    caplog.clear()

    def watched(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(checkpoint, "hash_file", watched)
    train(tiny, run, "optim.steps=4", "run.resume=must")
    assert caplog.text.count(f"{newest} is damaged") == 1
    assert hashed.count(run / "checkpoints/step-00000002/model.safetensors") == 1


def test_all_damaged_checkpoints_are_named_where_one_must_be_there(
    tmp_path: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(tiny, run, "optim.steps=4")
    newest = run / "checkpoints/step-00000004"
    (newest / "model.safetensors").write_bytes(b"")
    caplog.clear()
    with pytest.raises(UserError, match="has no whole checkpoint"):
        train(tiny, run, "optim.steps=4", "run.resume=must")
    assert caplog.text.count(f"{newest} is damaged") == 1


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from data.storage.locations import take_lock

    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    os.close(take_lock(tmp_path / ".lock"))
    assert "this disk knows no locks; see that nothing else writes here" in caplog.text


def test_no_home_folder(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without HOME and without an entry in passwd: no cache is needed."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # pyright: ignore
    assert user_cache("index") == Path("/nonexistent/.cache/masked-patch-pretraining/index")
    train(tiny, tmp_path / "run", "optim.steps=4")
    with pytest.raises(
        UserError, match=r"^run.dir: ~/x: ~ has no home folder here; write the whole path"
    ):
        train(tiny, Path("~/x"))


# ---------------------------------------------------------------- finished before


def test_a_finished_run_is_measured_by_what_is_added(
    tmp_path: Path, tiny: list[str], shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        train(tiny, run, "data.val_shards=none", "optim.steps=5")
    assert "; 36 images, 1 epoch, 5 steps; " in caplog.text
    before = (run / "metrics.jsonl").read_bytes()
    assert b"val/" not in before
    with caplog.at_level(logging.INFO):
        train(tiny, run, f"data.val_shards={shards}/val-0.tar", "optim.steps=5")
    assert "was finished before, at step 5; measured now, and not in metrics.jsonl:" in caplog.text
    assert "  val/loss " in caplog.text
    assert (run / "metrics.jsonl").read_bytes() == before
