"""A file that was found right isn't hashed again, by this process or a later one, as long as it is the same file."""

import hashlib
import json
import os
import shutil

import pytest

from edgellm.errors import ManifestError
from edgellm.shards import mapped, verified
from edgellm.shards.manifest import ModelFile
from edgellm.shards.reading import watched
from edgellm.shards.verified import Verified

GOOD = b"weights " * 512
BOOT = "6f9c2b1e-0000-4000-8000-000000000001"


class Hashing:
    """hashlib, counting."""

    def __init__(self):
        self.count = 0

    def sha256(self, data):
        self.count += 1
        return hashlib.sha256(data)


@pytest.fixture
def hashing(monkeypatch, tmp_path):
    """What counts hashes, on a machine whose files were left alone for long, in one run of it."""
    counting = Hashing()
    monkeypatch.setattr(verified, "hashlib", counting)
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    boot = tmp_path / "boot_id"
    boot.write_text(f"{BOOT}\n")
    monkeypatch.setattr(verified, "_BOOT_ID", boot)
    fresh(monkeypatch)
    return counting


def fresh(monkeypatch, kept=None) -> Verified:
    """A process that starts, and keeps what it finds right in the file `kept`, verified-NAME.json."""
    files = Verified()
    monkeypatch.setattr(mapped, "verified", files)
    if kept is not None:
        files.keep_in(kept.parent, kept.stem.removeprefix("verified-"))
    return files


@pytest.fixture
def shard(tmp_path):
    """(its path, its line in the manifest)."""
    path = tmp_path / "layer-0000.safetensors"
    path.write_bytes(GOOD)
    return path, ModelFile(path.name, len(GOOD), hashlib.sha256(GOOD).hexdigest())


def flip_byte(path, middle=100):
    """Change a byte in place and set the file's times back, as late as it takes for the clock to have moved on."""
    was = os.stat(path)
    while os.stat(path).st_ctime_ns == was.st_ctime_ns:
        with open(path, "r+b") as f:
            f.seek(middle)
            f.write(b"X")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    now = os.stat(path)
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (was.st_ino, was.st_size, was.st_mtime_ns)


def test_a_file_is_hashed_once(hashing, shard):
    for _ in range(3):
        assert mapped.map_checked(*shard)[:] == GOOD
    assert hashing.count == 1


def test_a_byte_that_was_flipped_behind_its_times_is_found(hashing, shard):
    mapped.map_checked(*shard)
    flip_byte(shard[0])
    for _ in range(2):
        with pytest.raises(ManifestError, match=f"layer-0000.safetensors: SHA-256 is .*says {shard[1].sha256}"):
            mapped.map_checked(*shard)
    assert hashing.count == 3  # what was wrong is looked at again


def test_a_file_that_was_wrong_is_known_as_such_until_it_changes(hashing, shard):
    path, entry = shard
    mapped.map_checked(path, entry)
    assert not mapped.verified.is_wrong(path.stat(), entry.sha256)
    flip_byte(path)
    with pytest.raises(ManifestError, match="SHA-256"):
        mapped.map_checked(path, entry)
    assert mapped.verified.is_wrong(path.stat(), entry.sha256)
    assert not mapped.verified.is_wrong(path.stat(), "0" * 64)  # by another manifest nothing is known of it
    (good := path.with_name("pushed")).write_bytes(GOOD)
    os.replace(good, path)
    assert not mapped.verified.is_wrong(path.stat(), entry.sha256)
    mapped.map_checked(path, entry)


def test_a_file_that_was_misread_once_counts_again_when_it_is_read_well(hashing, shard, monkeypatch):
    path, entry = shard
    plain = hashing.sha256
    monkeypatch.setattr(hashing, "sha256", lambda data: hashlib.sha256(b"what a bad card gives"))
    with pytest.raises(ManifestError, match="SHA-256"):
        mapped.map_checked(path, entry)
    assert mapped.verified.is_wrong(path.stat(), entry.sha256)
    monkeypatch.setattr(hashing, "sha256", plain)
    mapped.map_checked(path, entry)
    assert not mapped.verified.is_wrong(path.stat(), entry.sha256)


def test_another_file_of_that_name_is_hashed(hashing, shard, tmp_path):
    mapped.map_checked(*shard)
    other = tmp_path / "other"
    other.write_bytes(GOOD[:-1] + b"X")
    shutil.copystat(shard[0], other)
    os.replace(other, shard[0])
    with pytest.raises(ManifestError, match="SHA-256"):
        mapped.map_checked(*shard)


def test_what_is_remembered_is_compared_with_each_manifest(hashing, shard):
    path, entry = shard
    mapped.map_checked(path, entry)
    with pytest.raises(ManifestError, match=f"SHA-256 is {entry.sha256}, the manifest says {'0' * 64}"):
        mapped.map_checked(path, ModelFile(entry.name, entry.bytes, "0" * 64))


def test_a_file_that_has_just_changed_is_not_remembered(hashing, shard, monkeypatch):
    monkeypatch.setattr(verified, "_SETTLED_NS", 3600 * 10**9)
    mapped.map_checked(*shard)
    mapped.map_checked(*shard)
    assert hashing.count == 2


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(hashing, shard, monkeypatch):
    plain = hashing.sha256

    def meanwhile(data):
        found = plain(data)
        flip_byte(shard[0])
        return found

    monkeypatch.setattr(hashing, "sha256", meanwhile)
    mapped.map_checked(*shard)
    monkeypatch.setattr(hashing, "sha256", plain)
    with pytest.raises(ManifestError, match="SHA-256"):
        mapped.map_checked(*shard)


def test_a_later_process_knows_what_was_saved(hashing, shard, tmp_path, monkeypatch):
    kept = tmp_path / "state/verified-b1.json"
    first = fresh(monkeypatch, kept)
    mapped.map_checked(*shard)
    first.save()
    fresh(monkeypatch, kept)
    mapped.map_checked(*shard)
    assert hashing.count == 1
    flip_byte(shard[0])
    fresh(monkeypatch, kept)
    with pytest.raises(ManifestError, match="SHA-256"):
        mapped.map_checked(*shard)


def test_agents_of_one_machine_know_what_the_others_found(hashing, shard, tmp_path, monkeypatch):
    first = fresh(monkeypatch, tmp_path / "verified-b1.json")
    mapped.map_checked(*shard)
    first.save()
    (tmp_path / "verified-b2.json").write_text("{")
    fresh(monkeypatch, tmp_path / "verified-b3.json")
    mapped.map_checked(*shard)
    assert hashing.count == 1


def test_nothing_new_is_not_written(hashing, shard, tmp_path, monkeypatch):
    kept = tmp_path / "verified-b1.json"
    first = fresh(monkeypatch, kept)
    first.save()
    assert not kept.exists()
    mapped.map_checked(*shard)
    first.save()
    kept.unlink()
    first.save()
    assert not kept.exists()


@pytest.mark.parametrize("content", ["another boot", "no boot id", b"", b"\xff", b"[]", b"null", b"7", b"[" * 60000,
                                     b"{}", b'{"boot": 3, "files": 4}', "odd", "damaged"])  # fmt: skip
def test_what_cannot_be_believed_is_hashed_again(hashing, shard, tmp_path, monkeypatch, content):
    kept = tmp_path / "verified-b1.json"
    first = fresh(monkeypatch, kept)
    mapped.map_checked(*shard)
    first.save()
    if content == "another boot":
        verified._BOOT_ID.write_text("6f9c2b1e-0000-4000-8000-000000000002\n")
    elif content == "no boot id":
        verified._BOOT_ID.unlink()
    elif content == "odd":
        found = json.loads(kept.read_text())
        kept.write_text(json.dumps(found | {"files": dict.fromkeys(found["files"], 3)}))
    elif content == "damaged":
        kept.write_text(kept.read_text().replace(shard[1].sha256, "0" * 64))
    else:
        kept.write_bytes(content)
    again = fresh(monkeypatch, kept)
    mapped.map_checked(*shard)
    assert hashing.count == 2
    again.save()  # and the next start finds something to believe, if the system names its runs
    fresh(monkeypatch, kept)
    mapped.map_checked(*shard)
    assert hashing.count == (3 if content == "no boot id" else 2)


def test_what_cannot_be_written_is_told(hashing, shard, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    first = fresh(monkeypatch, tmp_path / "file/below/verified-b1.json")
    mapped.map_checked(*shard)
    first.save()
    assert "can't be written, so the next start hashes shards again: Not a directory" in caplog.text


def test_what_is_read_is_told_piece_by_piece_whether_it_is_hashed_or_remembered(hashing, shard, monkeypatch):
    monkeypatch.setattr(verified, "PIECE_BYTES", 1000)
    told: list[int] = []
    for _ in range(2):
        with watched(told.append):
            assert mapped.map_checked(*shard)[:] == GOOD
        assert sum(told) == len(GOOD) and max(told) <= 1000
        told.clear()
    assert hashing.count == 1
    mapped.map_checked(*shard)
    assert not told  # nobody watches any more
