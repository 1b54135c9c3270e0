"""The action plugin edgellm_push: what it sends, and its scripts on this machine, as on a board."""

import hashlib
import io
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch._dynamo")  # ansible patches sys.intern, and then torch can't be imported any more
errors = pytest.importorskip("ansible.errors")
sys.path.insert(0, str(Path(__file__).parent.parent / "ansible/action_plugins"))

import edgellm_push  # noqa: E402


class Board(edgellm_push.ActionModule):
    """The plugin with a folder of this machine as its board. `commands` are those it has run; `before(number)` may
    change things before one runs, and cuts the input of a command to as many bytes as it returns."""

    def __init__(self, folder: Path, before=lambda number: None):
        self.folder, self.before, self.commands = folder, before, []

    def push(self, source: Path, *names: str, check: bool = False, dest: str = "dest") -> dict:
        args = {"src": str(source), "dest": str(self.folder / dest), "files": list(names)}
        self._task = SimpleNamespace(args=args, async_val=0, check_mode=check, diff=False, action="edgellm_push")
        self._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
        return self.run(task_vars={"inventory_hostname": "pi1"})

    def _low_level_execute_command(self, command, in_data, sudoable):
        assert sudoable and isinstance(in_data, bytes)
        self.commands.append(len(in_data))
        cut = self.before(len(self.commands))
        done = subprocess.run(["/bin/sh", "-c", f"umask 077; echo Welcome; {command}"], capture_output=True,
                              input=in_data[:cut], timeout=30)  # fmt: skip
        if cut is not None:
            raise errors.AnsibleConnectionFailure("the cable is out")
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Files of the controller: two small ones, and one of three pieces and a bit."""
    monkeypatch.setattr(edgellm_push, "PIECE_BYTES", 1000)
    folder = tmp_path / "source"
    (folder / "templates").mkdir(parents=True)
    for number, (name, size) in enumerate({"config.json": 17, "templates/tool": 0, "layer": 3217}.items()):
        (folder / name).write_bytes(bytes((number + 7 * i) % 251 for i in range(size)))
    return folder


@pytest.fixture
def board(tmp_path):
    (tmp_path / "board").mkdir()
    return Board(tmp_path / "board")


NAMES = ("config.json", "templates/tool", "layer")


def expected(source: Path) -> dict[str, bytes]:
    return {f"dest/{name}": (source / name).read_bytes() for name in NAMES}


def test_files_arrive_whole_with_their_modes_whatever_the_umask(board, source):
    done = board.push(source, *NAMES)
    assert done["changed"] and done["bytes"] == 3234 and done["pushed"] == list(NAMES)
    assert board.files() == expected(source)
    modes = {path: path.stat().st_mode & 0o777 for path in board.folder.glob("dest/**/*")}
    assert set(modes.values()) == {0o644, 0o755} and {m for p, m in modes.items() if p.is_file()} == {0o644}
    assert not (board.folder / "dest/.partial").exists()
    assert board.push(source, *NAMES)["changed"] is False and len(board.commands) == 7  # the last one only looked


def test_a_file_of_the_right_size_with_a_wrong_byte_is_replaced_and_never_changed_in_place(board, source):
    board.push(source, *NAMES)
    for name in ("config.json", "layer"):
        path = board.folder / "dest" / name
        path.write_bytes(b"?" + path.read_bytes()[1:])
    mapped = {name: open(board.folder / "dest" / name, "rb") for name in NAMES}
    assert board.push(source, *NAMES)["pushed"] == ["config.json", "layer"]
    assert board.files() == expected(source)
    assert [mapped[name].read(1) for name in NAMES] == [b"?", b"", b"?"]
    for file in mapped.values():
        file.close()


def test_check_mode_says_what_would_be_pushed(board, source):
    done = board.push(source, *NAMES, check=True)
    assert done["changed"] and done["bytes"] == 3234 and board.files() == {}


@pytest.mark.parametrize("cut", [0, 1, 217, 1000])
def test_a_large_file_is_continued_where_the_connection_broke(board, source, cut):
    board.before = lambda number: cut if number == 4 else None  # look, small files, first piece, second piece
    done = board.push(source, *NAMES)
    assert done["failed"] and done["msg"] == (
        "board pi1 was lost after 0 of 0 MB were pushed. Check its power and cable, then run this again: it continues "
        "there."
    )
    assert set(board.files()) == {"dest/config.json", "dest/templates/tool", "dest/.partial/layer"}
    board.before, board.commands = lambda number: None, []
    assert board.push(source, *NAMES)["pushed"] == ["layer"]
    assert board.files() == expected(source)
    assert sum(board.commands[1:]) == 3217 - 1000 - cut


def test_what_the_last_run_still_writes_on_the_board_does_no_harm(board, source):
    board.before = lambda number: 217 if number == 4 else None
    board.push(source, *NAMES)

    def late(number):  # the broken connection's command gets what was on its way, while the next run pushes
        if number == 2:
            with open(board.folder / "dest/.partial/layer", "r+b") as file:
                file.seek(1217)
                file.write((source / "layer").read_bytes()[1217:2000])

    board.before, board.commands = late, []
    board.push(source, *NAMES)
    assert board.files() == expected(source) and sum(board.commands[1:]) == 2000


def test_a_batch_of_small_files_that_was_cut_is_sent_again(board, source):
    board.before = lambda number: 700 if number == 2 else None
    assert board.push(source, *NAMES)["failed"]
    board.before = lambda number: None
    board.push(source, *NAMES)
    assert board.files() == expected(source)


@pytest.mark.parametrize("begun", [b"?" * 1200, b"?" * 3217, b"?" * 5000])
def test_what_was_begun_wrongly_is_found_and_sent_again(board, source, begun):
    (board.folder / "dest/.partial").mkdir(parents=True)
    (board.folder / "dest/.partial/layer").write_bytes(begun)
    assert board.push(source, *NAMES)["pushed"] == list(NAMES)
    assert board.files() == expected(source)


def test_what_was_begun_to_the_end_is_moved_into_place(board, source):
    (board.folder / "dest/.partial").mkdir(parents=True)
    (board.folder / "dest/.partial/layer").write_bytes((source / "layer").read_bytes())
    board.push(source, "layer")
    assert board.files() == {"dest/layer": (source / "layer").read_bytes()} and len(board.commands) == 2


def test_what_the_board_says_becomes_a_sentence(board, source):
    (board.folder / "dest").write_text("not a folder")
    said = board.push(source, "layer")["msg"]
    assert said.startswith("board pi1: the push stopped after 0 of 0 MB: ") and "dest" in said
    assert said.endswith(". Fix that, then run this again.")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("x\ntar: a: Cannot write: No space left on device\ntar: Exiting",
         "board pi1: its disk was full after 120 of 470 MB were pushed. Free some space, or use a larger card."),
        ("mv: cannot move: Read-only file system",
         "board pi1: its disk failed after 120 of 470 MB were pushed. Check 'dmesg' there, and replace the card."),
        ("", "board pi1: the push stopped after 120 of 470 MB: it said nothing. Fix that, then run this again."),
    ],
)  # fmt: skip
def test_failures(said, sentence):
    assert edgellm_push.failure("pi1", said, 120_000_000, 470_000_000) == sentence


@pytest.mark.parametrize("script", [edgellm_push.UNPACK, edgellm_push.APPEND])
def test_a_script_that_fails_reads_its_input_to_the_end(script, tmp_path):
    """Otherwise ssh would hide what it says behind a broken pipe."""
    command = edgellm_push.command(script, "/dev/null/dest", "large", 0, 1)
    failed = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    failed.stdin.write(bytes(300_000))  # more than a pipe holds: raises BrokenPipeError if nobody reads it
    failed.stdin.close()
    assert failed.wait(30) == 1


@pytest.mark.parametrize("script", [edgellm_push.LOOK, edgellm_push.UNPACK, edgellm_push.APPEND])
def test_no_login_shell_reads_a_script(script):
    """csh would run each line of it as a command of its own, in the user's home."""
    command = edgellm_push.command(script, "/var/lib/x", "layer", 0)
    assert not set("\n!\\`") & set(command)
    words = shlex.split(command)
    assert words[:2] == ["/bin/sh", "-c"] and words[3:] == ["sh", "/var/lib/x", "layer", "0"]


def test_a_file_that_is_not_there_is_named_before_the_board_is_asked(board, source):
    said = board.push(source, "config.json", "layer-0007")["msg"]
    assert said == f"board pi1: this machine can't read {source}/layer-0007: No such file or directory"
    assert board.commands == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "-rf", "two words", "a\nb", ".partial/x"])
def test_names_stay_in_their_folder(name):
    with pytest.raises(ValueError, match="no name of a file to push"):
        edgellm_push.check_names(["config.json", name])


def test_batches_hold_small_files_and_a_large_one_stands_alone():
    sizes = {"a": 400, "b": 600, "c": 1, "big": 1001, "d": 1000, "e": 0}
    assert edgellm_push.batches(sizes, 1000) == [["a", "b"], ["c"], ["d", "e"], ["big"]]
    assert edgellm_push.batches({}, 1000) == []


@pytest.mark.parametrize(
    ("size", "begun", "sent"),
    [(2500, 0, [(0, 1000), (1000, 1000), (2000, 500)]), (2500, 1700, [(1700, 800)]), (2000, 2000, [(1000, 1000)]),
     (2000, 9000, [(1000, 1000)]), (1500, 1499, [(1499, 1)])],
)  # fmt: skip
def test_pieces_continue_what_was_begun(size, begun, sent):
    assert list(edgellm_push.pieces(size, begun, 1000)) == sent


def test_the_tar_stream_is_one(source):
    data = edgellm_push.tar_stream(source, {"config.json": 17, "templates/tool": 0})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [(i.name, i.mode, i.uid) for i in archive] == [("config.json", 0o644, 0), ("templates/tool", 0o644, 0)]
        assert archive.extractfile("config.json").read() == (source / "config.json").read_bytes()


def test_a_file_that_shrinks_meanwhile_is_no_shorter_file_on_the_board(source):
    with pytest.raises(OSError, match="has become shorter while it was pushed"):
        edgellm_push.read(source / "layer", 3000, 218)


def test_what_look_prints_is_told_from_a_banner():
    stdout = f"Welcome = all\nedgellm_there={'a' * 64} x\nedgellm_begun=12 y/z\nedgellm_begun=? w\n"
    assert edgellm_push.parse_look(stdout) == ({"x": "a" * 64}, {"y/z": 12})


def test_long_pushes_say_how_far_they_are(board, source, monkeypatch):
    shown, now = [], iter(range(0, 1000, 3))
    monkeypatch.setattr(edgellm_push.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(edgellm_push.Display, "display", lambda self, message: shown.append(message))
    board.push(source, *NAMES)
    assert shown == ["pi1: 0 of 0 MB"] * len(shown) and 1 <= len(shown) < 4


def test_sha256(source):
    assert edgellm_push.sha256_of(source / "layer") == hashlib.sha256((source / "layer").read_bytes()).hexdigest()
