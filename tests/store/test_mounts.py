"""file:// on shared file systems: what NFS may hide from a job is said where the job is looked at (B8)."""

from pathlib import Path

import pytest

from holdfast_store.file import FileBucket
from holdfast_store.mounts import CACHED, caveat, mount_of
from holdfast_store.probe import probe

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:50 / /mnt/shared rw,relatime shared:9 - nfs4 nas:/export rw,vers=4.2,acregmin=3,hard
31 30 0:51 / /mnt/shared/fresh rw shared:9 - nfs nas:/e2 rw,acdirmin=0,acdirmax=0,lookupcache=pos
32 22 0:52 / /mnt/with\040blank rw - nfs4 nas:/e3 rw,noac
33 22 0:53 / /mnt/hidden rw - ext4 /dev/sdb rw
34 22 0:54 / /mnt/hidden rw - nfs4 nas:/e4 rw
35 22 0:27 / /dev/shm rw,nosuid - tmpfs tmpfs rw
36 30 0:45 / /mnt/shared/my\040disk rw - xfs /dev/nvme0n1 rw
nonsense
1 2 3 -
"""


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/data", "ext4", ""),
        ("/mnt/shared/a", "nfs4", CACHED),
        ("/mnt/sharedother", "ext4", ""),
        ("/mnt/shared/fresh", "nfs", ""),
        ("/mnt/with blank/x", "nfs4", ""),
        ("/mnt/hidden/x", "nfs4", CACHED),
        ("/dev/shm", "tmpfs", ""),
        ("/dev/shm/x", "tmpfs", ""),
        ("/dev/shmother", "ext4", ""),
        ("/mnt/shared/my disk/x", "xfs", ""),
    ],
)
def test_the_mount_under_a_directory_and_what_is_said_of_it(path: str, kind: str, said: str) -> None:
    mount = mount_of(path, MOUNTINFO)
    assert mount is not None
    assert (mount.kind, caveat(mount)) == (kind, said)


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert mount_of("/x", "") is None
    assert mount_of("/x", "nonsense\n1 2 3 - \n") is None
    assert caveat(None) == ""


def test_the_probe_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = FileBucket(tmp_path)
    assert probe(bucket, prefix="").note == ""
    monkeypatch.setattr("holdfast_store.mounts.mount_of", lambda *_: mount_of("/mnt/shared/a", MOUNTINFO))
    result = probe(bucket, prefix="")
    assert (result.conditional_writes, result.note) == (True, CACHED)
