"""What a board is, by its probe, whether it can be used, and what went wrong there, in a sentence."""

import pytest

from tests.playbooks.plugins import plugin

boards = plugin("filter", "boards")


GOOD = {
    "time_s": "1000000", "user": "edge", "root": "yes", "id": "debian", "id_like": "", "pretty": "Debian GNU/Linux 12",
    "machine": "aarch64", "bits": "64", "packages_for": "arm64", "systemd": "yes", "ram_kb": "4000000",
    "ram_free_kb": "3500000", "opt_free_kb": "9000000", "var_free_kb": "9000000",
    "installed": "", "python": "/usr/bin/python3", "python_version": "3.11.2", "python_whole": "yes",
}  # fmt: skip


def facts(**changes) -> dict:
    """The facts of a board with file systems for /opt, /var, /run and the rest, whose free_kb are variables."""
    values = {"run_free_kb": "200000", "root_free_kb": "9000000", "inodes": "60000", **GOOD, **changes}
    rooms = {"/opt/edgellm/versions": "/opt", "/var/lib/edgellm/wheels": "/var", "/var/lib/edgellm/models": "/var",
             "/etc/edgellm/tls": "/", "/run": "/run"}  # fmt: skip
    free = {mount: values.pop(f"{mount[1:] or 'root'}_free_kb") for mount in ("/opt", "/var", "/run", "/")}
    lines = [f"{key}={value}" for key, value in values.items() if key != "inodes"]
    lines += [f"room= {free[mount]} {values['inodes']} 65536 {mount} {folder}" for folder, mount in rooms.items()]
    return boards.board_facts("Welcome!\r\n> \r\n" + "".join(f"edgellm_{line}\r\n" for line in lines), 1000000.0)


def test_a_good_board_has_no_problem():
    assert facts()["python_minor"] == "3.11" and facts()["missing"] == []
    assert boards.board_problem(facts(), "pi1") == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "fedora", "pretty": "Fedora Linux 40"}, "board pi1 runs Fedora Linux 40"),
        ({"machine": "armv7l", "bits": "32", "packages_for": "armhf"}, "board pi1 is armv7l"),
        ({"bits": "32", "packages_for": "armhf"}, "a 32-bit system (armhf) on a 64-bit kernel (aarch64)"),
        ({"root": "no"}, "edge can't use sudo without a password"),
        ({"systemd": ""}, "not booted with systemd"),
        ({"read_only": "/var/lib"}, "/var/lib is on a read-only file system"),
        ({"time_s": "992800"}, "its clock is 2.0 hours behind this machine's"),
        ({"unwritable": "/opt/edgellm/versions: Operation not permitted"}, "can't write to /opt/edgellm/versions"),
        ({"closed": "/opt"}, "may enter /opt, but the agent runs as the user edgellm. Run 'sudo chmod o+x /opt'"),
        ({"var_free_kb": "1500"}, "board pi1 has 1 MB free on /var, but edgellm needs 2 MB there. Free some space"),
        ({"var_free_kb": "0"}, "board pi1: /var is full, 0 MB are free, but edgellm needs 2 MB there. Free some space"),
        ({"root_free_kb": "0"}, "board pi1: / is full, 0 MB are free, but edgellm needs 1 MB there. Free some space"),
        ({"inodes": "3"}, "board pi1 has 3 inodes free on /opt, but edgellm needs 40 there, one for each file."),
        ({"full": "/run"}, "board pi1: /run is full, 0 MB are free, but edgellm needs 1 MB there."),
    ],
)
def test_a_board_that_cannot_be_used_is_named_with_the_way_out(changes, said):
    sentence = boards.board_problem(facts(**changes), "pi1")
    assert said in sentence and "pi1" in sentence and sentence.endswith(".")


@pytest.mark.parametrize("changes", [{"time_s": "1000300"}, {"id": "armbian"}, {"id": "x", "id_like": "ubuntu debian"}])
def test_what_is_tolerated(changes):
    assert boards.board_problem(facts(**changes), "pi1") == ""


def test_a_new_board_has_room_for_two_versions_of_the_software():
    new = {"id": "0.1.0-x", "libraries": "1a2b", "installed_bytes": 600_000_000, "bytes": 200_000_000}
    sentence = boards.software_problem(facts(opt_free_kb="1000000"), "pi1", new)
    assert sentence == (
        "board pi1 has 1024 MB free on /opt, but edgellm needs 1201 MB there (1201 MB in /opt/edgellm/versions). "
        "Free some space there, or use a larger card."
    )
    assert boards.software_problem(facts(opt_free_kb="1200000"), "pi1", new) == ""
    assert boards.software_problem(facts(opt_free_kb="700000", versions="0.0.9-y"), "pi1", new) == ""
    assert "needs 202 MB" in boards.software_problem(facts(var_free_kb="150000"), "pi1", new)
    assert boards.software_problem(facts(opt_free_kb="50000", libraries="1a2b"), "pi1", new) == ""
    assert boards.software_problem(facts(opt_free_kb="1000", complete="0.0.9-y 0.1.0-x"), "pi1", new) == ""


def test_a_new_board_s_disk_holds_a_version_and_then_shards():
    found = facts(var_free_kb="500000")
    assert boards.disk_estimate(found, 101_000_000) == {"disk_bytes": 512_000_000 - 200_000_000}
    found["rooms"][boards.VERSIONS] = found["rooms"][boards.MODELS]
    assert boards.disk_estimate(found, 101_000_000) == {"disk_bytes": 512_000_000 - 101_000_000 - 200_000_000}
    assert boards.disk_estimate({**found, "installed": "versions/0.1.0-x"}, 101_000_000) == {}


def test_a_file_system_that_does_not_run_out_of_inodes_has_enough():
    assert facts(inodes="0")["rooms"]["/run"]["inodes"] == 0
    btrfs = boards.rooms("edgellm_room=  100000          0          0 /mnt/my card /opt/edgellm/versions\r\n")
    assert btrfs == {"/opt/edgellm/versions": {"free_kb": 100000, "inodes": None, "mount": "/mnt/my card"}}


def test_torch_is_part_of_a_board_s_kind():
    assert boards.kind(facts(), True) == ["aarch64", "3.11", True] and boards.kind(facts(), "")[2] is False


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"python_version": "3.9.2"}, ["python3"]), ({"python_whole": ""}, ["python3"]), ({}, []),
     ({"python": "", "python_version": "", "python_whole": ""}, ["python3"])],
)  # fmt: skip
def test_missing_packages(changes, missing):
    assert facts(**changes)["missing"] == missing


MADE = {"name": "python-3.13.14-20260805", "version": "3.13.14", "minor": "3.13", "folder": "/home/me/.cache/x",
        "archive": "x.tar.gz", "sha256": "ab", "bytes": 20_000_000, "installed_bytes": 60_000_000}  # fmt: skip
NO_PYTHON = {"python": "", "python_version": "", "python_whole": ""}
OFFLINE = {"python aarch64": "Python 3.13.14 can't be fetched (dns error). Connect this machine."}


@pytest.mark.parametrize("changes", [NO_PYTHON, {"python_version": "3.9.2"}])
def test_a_board_for_which_apt_has_no_python_gets_one_from_the_controller(changes):
    board = boards.with_packages(facts(**changes), "edgellm_mirror=no\n")
    assert board["standalone"] and board["packages"] == [] and board["missing"] == ["python3"]
    hosts = [{"preflight_board": b, "preflight_reason": ""} for b in (board, board, facts())]
    hosts += [{"preflight_board": {**board, "machine": "x86_64"}, "preflight_reason": "board pi9 is off."}]
    (step,) = boards.standalone_steps(hosts)
    assert step == {"name": "python aarch64", "command": ["python", "--machine", "aarch64"], "optional": True}
    assert boards.standalone_problem(board, {}, "pi1") == ""
    board = boards.with_standalone(board, {"python aarch64": MADE})
    assert board["python"] == "/opt/edgellm/python-3.13.14-20260805/bin/python3" and board["python_minor"] == "3.13"
    assert board["standalone_lacks"] and board["standalone_archive"] == "x.tar.gz"
    room = {"free_kb": 100_000, "inodes": None, "mount": "/opt"}
    wheelhouse = {"id": "0.1.0-x", "libraries": "1a", "installed_bytes": 30_000_000, "bytes": 9_000_000}
    full = boards.software_problem({**board, "rooms": {boards.VERSIONS: room}}, "pi1", wheelhouse)
    assert "board pi1 has 102 MB free on /opt, but edgellm needs 121 MB there" in full  # 2 x 30 + 60


def test_a_python_that_deploy_brought_is_kept_until_there_is_another():
    board = facts(python="/opt/edgellm/python-3.13.14-20260805/bin/python3.13", python_version="3.13.14")
    assert board["standalone"] and board["missing"] == []
    assert boards.with_standalone(board, {"python aarch64": MADE})["standalone_lacks"] is False
    newer = {**MADE, "name": "python-3.13.15-1", "version": "3.13.15"}
    assert boards.with_standalone(board, {"python aarch64": newer})["standalone_lacks"]
    # If this machine can't get any, the board keeps what it has.
    assert boards.with_standalone(board, {}) == board and boards.standalone_problem(board, OFFLINE, "pi1") == ""
    assert not facts()["standalone"] and not facts()["standalone_lacks"]


def test_a_board_for_which_nobody_has_a_python_is_named_with_the_way_out():
    board = boards.with_packages(facts(python_version="3.9.2"), "edgellm_mirror=no\n")
    assert boards.standalone_problem(board, OFFLINE, "pi1") == (
        "board pi1 lacks Python 3.11 or newer (it has 3.9.2), its apt reaches no mirror, and this machine has none for "
        "it. Python 3.13.14 can't be fetched (dns error). Connect this machine."
    )
    none = boards.with_packages(facts(**NO_PYTHON), "")
    assert "board pi1 lacks Python 3.11 or newer, its mirror doesn't offer it, and" in (
        boards.standalone_problem(none, OFFLINE, "pi1")
    )


def test_python_that_apt_will_bring_counts():
    stdout = "edgellm_python=/usr/bin/python3.12\nedgellm_python_minor=3.12\nedgellm_packages=python3.12\n"
    found = boards.with_packages(facts(python_version="3.10.1"), stdout)
    assert (found["python"], found["python_minor"]) == ("/usr/bin/python3.12", "3.12")
    assert found["packages"] == ["python3.12"]


@pytest.mark.parametrize(
    ("memory_max", "ram", "limits"),
    [
        ("90%", "", ((4 << 30) * 9 // 10, None)),
        ("1G", None, (1 << 30, None)),
        ("1.5G", "1.5 GB", (3 << 29, 1_500_000_000)),
        ("infinity", "1GiB", (None, 1 << 30)),
        (800_000_000, "512MB", (800_000_000, 512_000_000)),
    ],
)
def test_a_board_without_an_agent_has_what_is_free_within_the_inventorys_limits(memory_max, ram, limits):
    found = boards.memory(facts(ram_kb=str(4 << 20), ram_free_kb="3502000"), memory_max, ram, "auto", "0.2.0-abc")
    assert found == {"free": 3502000 * 1024, "memory_max": limits[0], "ram": limits[1], "kept": False,
                     "stays": False}


RUNS = {"agent_kb": "500000", "agent_memory_max": "90%", "agent_ram": "3GB", "agent_path": ""}


@pytest.mark.parametrize(
    ("runs", "wanted", "kept"),
    [
        (RUNS, ("90%", "3 GB", "auto"), True),
        ({**RUNS, "agent_ram": ""}, ("90%", "", "auto"), True),
        ({**RUNS, "agent_path": "generic"}, ("90%", "3GB", "generic"), True),
        (RUNS, ("90%", "2GB", "auto"), False),
        (RUNS, ("90%", "", "auto"), False),
        (RUNS, ("80%", "3GB", "auto"), False),
        (RUNS, ("90%", "3GB", "generic"), False),
        ({**RUNS, "agent_kb": ""}, ("90%", "3GB", "auto"), False),  # it doesn't run
    ],
)
def test_what_the_running_agent_holds_would_be_free_and_it_may_keep_its_limits(runs, wanted, kept):
    found = boards.memory(facts(ram_free_kb="1000000", installed="versions/0.2.0-abc", **runs), *wanted, "0.2.0-abc")
    assert found["kept"] is found["stays"] is kept
    found = boards.memory(facts(ram_free_kb="1000000", installed="versions/0.1.0-abc", **runs), *wanted, "0.2.0-abc")
    assert found["kept"] is kept and not found["stays"]  # an upgrade starts it again
    assert found["free"] == (1000000 + int(runs["agent_kb"] or 0)) * 1024


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Failed to connect to the host via ssh: edge@x: Permission denied (publickey).", "refuses the SSH key"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection timed out", "can't be reached over SSH"),
        ("ssh: connect to host 192.0.2.1 port 22: No route to host", "can't be reached over SSH"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection refused", "nothing listens for SSH"),
        ("Host key verification failed.", "its SSH host key is unknown on this machine"),
        ("tar: x: Cannot write: No space left on device", "its disk is full"),
        ("cat: write error: No space left on device\nShared connection to x closed.\nBroken pipe", "its disk is full"),
        ("WARNING: Your password has expired.\nPassword change required but no TTY available.", "change its password"),
        ("Your account has expired; please contact your administrator.\nConnection closed by x", "account has expired"),
        ("Unprivileged users are not permitted to log in yet. Connection closed by x", "just starting"),
        ("sudo: sorry, you must have a tty to run sudo", "'Defaults:USER !requiretty'"),
        ("sudo: Account or password is expired, reset your password", "must change its password"),
        ("sh: 1: exec: sudo: not found", "has no sudo"),
        ("OSError: [Errno 30] Read-only file system: '/opt/x'", "its file system is read-only"),
        ("sudo: a password is required", "can't use sudo without a password"),
    ],
)
def test_what_went_wrong_becomes_a_sentence(message, said):
    sentence = boards.why({"msg": "non-zero return code", "stderr": message}, "pi1", "192.0.2.1")
    assert said in sentence and sentence.startswith("board pi1") and "\n" not in sentence


def test_a_sentence_of_ours_stays_as_it_is():
    assert boards.why({"msg": "board pi2: it has no card."}, "pi1") == "board pi2: it has no card."
    assert boards.why({"msg": "non-zero", "stderr": "note\nedgellm: 2 GB are missing. Add a board."}, "pi1") == (
        "2 GB are missing. Add a board."
    )


def test_the_status_says_whether_a_board_answers():
    told = '{"boards": [{"board": "pi1", "version": "0.1.0"}, {"board": "pi2", "version": null}]}'
    assert boards.answers(told, "pi1") and not boards.answers(told, "pi2") and not boards.answers("", "pi1")
