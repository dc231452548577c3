"""How an error is told in one line, and what helps against an error of a disk."""

import errno
import os
import re
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "the quota is used up: delete something of yours, or ask for more",
    errno.EFBIG: "the disk, or ulimit -f, allows no file so large",
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
    errno.EROFS: "the disk is mounted for reading only: choose another place",
    errno.EIO: "the disk itself fails: see the system's log, and choose another place",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "links there point at each other: mend them",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.EEXIST: "there is a file of that name: choose another name",
    errno.ENOENT: "see that the folder is there",
    errno.ESTALE: "the network disk has changed under it: start again",
    errno.ETIMEDOUT: "the network disk does not answer: start again when it does",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.ENFILE: "the machine has too many open files: close other programs",
}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return an error's text in one line; its kind where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: Exception) -> str:
    """Return what a disk said and what helps, such as `No space left on device; make room`.

    Args:
        error: An `OSError`, or safetensors' error with the system's number in its text.
    """
    number = _number(error)
    if number is None:
        return one_line(error)
    remedy = _REMEDIES.get(number)
    return os.strerror(number) + (f"; {remedy}" if remedy else "")


def is_disk_error(error: OSError) -> bool:
    """Tell whether an error is of a kind for which `explain` has a remedy."""
    return error.errno in _REMEDIES


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


# ---------------------------------------------------------------- kinds of disks

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|ceph|glusterfs|gpfs|beegfs|orangefs|afs|9p|"
    r"fuse\.(sshfs|s3fs|gcsfuse|rclone|ceph|glusterfs|juicefs|goofys|blobfuse2?|mount-s3|ceph-fuse)"
)


def network_disk(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the kind of network disk on which a path lies, such as nfs4; None of others.

    Args:
        path: On this machine.
        mounts: Linux's list of what is mounted; where there is none, nothing is known.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
        place = path.resolve()
    except OSError:
        return None
    kinds: dict[str, str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            kinds[point] = after.split(" ")[0]
    above = (str(folder) for folder in (place, *place.parents))
    kind = next((kinds[folder] for folder in above if folder in kinds), "")
    return kind if _NETWORK.fullmatch(kind) else None
