"""Deploy's view of the cluster: does the model fit, who takes what, and is the answer right."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.controller import forming
from edgellm.controller.forming import Request
from edgellm.errors import BoardError, PlanError, UsageError
from edgellm.manager.cluster_file import ClusterFile, SshAccess
from edgellm.manager.session import Session
from edgellm.plan import Settings
from edgellm.sampling import Sampling
from tests.certificates import make_cluster
from tests.fakes import Boards, generate, make_manifest, run, until
from tests.tiny import split_tiny

PROMPT = [5, 17, 3, 42, 8, 1, 90]
SETTINGS = Settings(64, 2, 5, "float32", "throughput")
LARGE = make_manifest(ram_bytes=300_000_000)  # three layers fit on a board


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgellm.manager.survey._LOST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)
    monkeypatch.setattr("edgellm.controller.forming._RETRY_FOR_S", 0.3)


# The request


def content_of(model_dir: Path, addresses: dict[str, tuple[str, int]], **changes) -> dict:
    boards = [{"name": n, "host": host, "port": port} for n, (host, port) in addresses.items()]
    return {"model_dir": str(model_dir), "settings": SETTINGS.to_dict(), "tls": None, "boards": boards, **changes}


@pytest.fixture
def request_of(tmp_path):
    """A request out of a file, as deploy writes it."""

    def request_of(model_dir, addresses, boards=None, **changes) -> Request:
        content = content_of(model_dir, addresses, **changes)
        for board in content["boards"]:
            board.update((boards or {}).get(board["name"], {}))
        path = tmp_path / "request.json"
        path.write_text(json.dumps(content))
        return Request.read(path)

    return request_of


def test_a_request_is_read(request_of, tmp_path):
    access = {"host": "10.0.0.1", "user": "pi", "port": 2222, "key": "/home/me/key"}
    request = request_of(
        tmp_path, {"pi1": ("10.0.0.1", 7710), "pi2": ("pi2.local", 7711)},
        {"pi1": {"ssh": access, "ram_bytes": 10**9, "disk_bytes": 5}, "pi2": {"ssh": None, "ram_bytes": None}},
        tls=str(tmp_path / "tls"),
    )  # fmt: skip
    assert (request.model_dir, request.settings, request.tls) == (tmp_path, SETTINGS, tmp_path / "tls")
    assert request.addresses == {"pi1": ("10.0.0.1", 7710), "pi2": ("pi2.local", 7711)}
    assert [b.ssh for b in request.boards] == [SshAccess(**access), None]
    assert (request.ram_bytes, request.disk_bytes) == ({"pi1": 10**9}, {"pi1": 5})


BOARD = {"name": "pi1", "host": "10.0.0.1", "port": 7710}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boards": None}, "NoneType"),
        ({"boards": 5}, "int"),
        ({"boards": [5]}, "int"),
        ({"boards": [{}]}, "'name'"),
        ({"boards": [{**BOARD, "name": "../pi"}]}, "'../pi' is not a board name"),
        ({"boards": [{**BOARD, "host": "-oProxyCommand=x"}]}, "is not a host name"),
        ({"boards": [{**BOARD, "port": "7710"}]}, "port is '7710', expected 1 to 65535"),
        ({"boards": [BOARD, {**BOARD, "port": 7711}]}, "board pi1 is there 2 times, expected once"),
        ({"boards": [{**BOARD, "ssh": {"host": "x", "shell": "y"}}]}, "shell"),
        ({"boards": [{**BOARD, "ssh": {"host": "x", "user": "-x"}}]}, "user is '-x'"),
        ({"boards": [{**BOARD, "ssh": "pi@pi1"}]}, "str"),
        ({"boards": [{**BOARD, "ram_bytes": "4GB"}]}, "board pi1: ram_bytes is '4GB', expected a number of bytes"),
        ({"boards": [{**BOARD, "disk_bytes": True}]}, "board pi1: disk_bytes is True"),
        ({"settings": {}}, "settings lacks"),
        ({"settings": {**SETTINGS.to_dict(), "context": 0}}, "context is 0"),
        ({"model_dir": 5}, "int"),
        ({"tls": 5}, "int"),
    ],
)
def test_a_request_that_is_none_is_refused_with_its_path(tmp_path, change, words):
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**content_of(tmp_path, {}), **change}))
    with pytest.raises(UsageError) as e:
        Request.read(path)
    assert str(e.value).startswith(f"{path}: ") and words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000, b'{"boards": []}'])
def test_what_is_no_request_at_all_is_refused(tmp_path, raw):
    path = tmp_path / "request.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=str(path)):
        Request.read(path)
    with pytest.raises(UsageError, match="No such file"):
        Request.read(tmp_path / "absent.json")


# Does it fit


def nowhere(count: int) -> dict[str, tuple[str, int]]:
    return {f"b{i}": ("127.0.0.1", 9 + i) for i in range(count)}


@pytest.mark.parametrize(
    ("boards", "missing"),
    [
        ({"b0": {"ram_bytes": 1_100_000_000}, "b1": {"ram_bytes": 1_100_000_000}}, None),
        ({"b0": {"ram_bytes": 1_100_000_000}, "b1": {"ram_bytes": 500_000_000}}, "1.10 GB"),
        ({"b0": {"ram_bytes": 1_100_000_000}}, "b0"),
        ({"b0": {"ram_bytes": 0}, "b1": {"ram_bytes": -5}}, "no boards to plan fake on. Add one."),
        ({}, "no boards to plan fake on. Add one."),
        ({"b0": {"ram_bytes": 4 << 30, "disk_bytes": 100 << 20}}, "0.10 GB"),  # no room to push the shards
    ],
)
def test_before_there_are_agents_estimates_tell_whether_the_model_fits(tmp_path, request_of, boards, missing):
    LARGE.write(tmp_path)
    said = forming.fit(request_of(tmp_path, nowhere(2), boards, tls=str(tmp_path / "no-certificates-yet")))
    assert said is None if missing is None else missing in said


def test_agents_that_answer_are_believed_instead(tmp_path, request_of):
    async def go():
        async with Boards(tmp_path, 2, LARGE) as boards:
            low, high = ({n: {"ram_bytes": b} for n in ("b0", "b1", "b2")} for b in (1, 1 << 40))

            async def fit(estimates):
                return await asyncio.to_thread(forming.fit, request_of(tmp_path, boards.addresses, estimates))

            fits = [await fit(low), await fit(high)]
            await boards.stop(1)
            return fits, await fit(low)

    fits, without = run(go())
    assert fits == [None, None] and "1.07 GB" in without


# Forming


class Deploy:
    """A controller that forms boards, again and again, and writes the cluster file."""

    def __init__(self, boards: Boards, request_of, path: Path):
        self.boards, self.path, self._request_of = boards, path, request_of
        self.told: list[str] = []

    async def form(self, addresses=None, details=None, dry_run=False, **changes) -> dict:
        request = self._request_of(self.boards.folder, addresses or self.boards.addresses, details, **changes)
        return await asyncio.to_thread(forming.form, request, self.path, self.told.append, dry_run=dry_run)

    async def answer(self) -> list[int]:
        file = ClusterFile.read(self.path)
        async with Session(
            self.boards.manifest, file.plan, file.addresses(), tls=file.client_tls(self.path), patience_s=5
        ) as session:
            stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=20, eos=())
            return [c.token async for c in stream]


@pytest.fixture
def deploy(tmp_path, request_of):
    """Run `go(boards, a Deploy)`."""

    def deploy(go, count=2, manifest=LARGE, **kwargs):
        folder = tmp_path / "model"
        folder.mkdir()

        async def between():
            async with Boards(folder, count, manifest, **kwargs) as boards:
                return await go(boards, Deploy(boards, request_of, tmp_path / "config" / "cluster.json"))

        return run(between())

    return deploy


def test_a_cluster_is_formed_and_a_second_time_nothing_changes(deploy):
    async def go(boards, deploy):
        first = await deploy.form()
        before, stat = deploy.path.read_bytes(), deploy.path.stat()
        second = await deploy.form()
        assert deploy.path.read_bytes() == before and deploy.path.stat().st_mtime_ns == stat.st_mtime_ns
        assert await deploy.answer() == generate(PROMPT, 20)
        return first, second, deploy, ClusterFile.read(deploy.path), boards

    first, second, deploy, file, boards = deploy(go)
    sections = [{"board": "b0", "start": 0, "end": 3}, {"board": "b1", "start": 3, "end": 6}]
    assert (first["changed"], first["epoch"], first["sections"]) == (True, 1, sections)
    assert first["moved_bytes"] == sum(first["loaded_bytes"].values()) > 0 and "there was no plan" in first["reason"]
    assert (first["unused"], first["missing"], first["cluster_file"]) == ([], {}, str(deploy.path))
    assert (second["changed"], second["epoch"], second["moved_bytes"], second["loaded_bytes"]) == (False, 1, 0, {})
    assert second["sections"] == sections and deploy.told == ["epoch 1: b0 layers 0-3, b1 layers 3-6"]
    assert file.addresses() == boards.addresses and file.tls is None
    json.dumps([first, second])


def test_a_dry_run_says_what_would_be_and_changes_nothing(deploy):
    async def go(boards, deploy):
        dry = await deploy.form(dry_run=True)
        assert not deploy.path.exists() and [a.holding.epoch for a in boards.agents] == [None] * 3
        wet = await deploy.form()
        again = await deploy.form(dry_run=True)
        return dry, wet, again

    # Shards that aren't on a board yet may be pushed.
    stored = {"b0": (0, 1), "b1": (3, 4)}
    dry, wet, again = deploy(go, 3, make_manifest(), stored=stored)
    assert dry["changed"] and {s["board"] for s in dry["sections"]} == {"b0", "b1", "b2"}
    assert (dry["epoch"], wet["epoch"], again["epoch"]) == (1, 1, 2) and wet["sections"][0]["board"] == "b0"
    assert again["loaded_bytes"] == {}


def test_a_board_whose_disk_is_full_gets_no_layers(deploy):
    async def go(boards, deploy):
        return await deploy.form(details={"b1": {"disk_bytes": 1000}, "b0": {"disk_bytes": 1 << 40}}, dry_run=True)

    done = deploy(go, 3)
    assert [s["board"] for s in done["sections"]] == ["b0", "b2"] and done["unused"] == ["b1"]


def test_a_board_that_does_not_answer_is_left_out_and_named_and_comes_in_when_it_is_back(deploy):
    async def go(boards, deploy):
        await boards.stop(1)
        without = await deploy.form()
        await boards.start(1)
        back = await deploy.form()
        assert await deploy.answer() == generate(PROMPT, 20)
        return without, back, ClusterFile.read(deploy.path)

    without, back, file = deploy(go, 3, make_manifest())
    assert {s["board"] for s in without["sections"]} == {"b0", "b2"} and without["unused"] == []
    assert set(without["missing"]) == {"b1"} and "connection refused" in without["missing"]["b1"]
    assert back["changed"] and back["missing"] == {} and len(back["sections"]) == 3
    assert {b.name for b in file.boards} == {"b0", "b1", "b2"}  # also while it was missing


def test_too_few_boards_are_named_with_numbers_and_nothing_is_touched(deploy):
    async def go(boards, deploy):
        await deploy.form()
        before, epochs = deploy.path.read_bytes(), [a.holding.epoch for a in boards.agents]
        await boards.stop(1)
        with pytest.raises(PlanError, match=r"b0 .*1\.07 GB"):
            await deploy.form()
        assert deploy.path.read_bytes() == before and [a.holding.epoch for a in boards.agents][:1] == epochs[:1]
        await boards.stop(0)
        with pytest.raises(BoardError, match="no board answers: board b0 .*; board b1 .*"):
            await deploy.form()
        with pytest.raises(BoardError, match="no board answers"):
            await deploy.form(dry_run=True)

    deploy(go)


def test_another_address_other_settings_and_a_lost_file_are_changes(deploy):
    async def go(boards, deploy):
        done = [await deploy.form()]
        moved = {n: ("localhost", port) for n, (_, port) in boards.addresses.items()}
        done.append(await deploy.form(moved))
        assert ClusterFile.read(deploy.path).addresses() == moved
        assert boards.agents[0].stage.addresses == moved  # the boards have been told, too
        done.append(await deploy.form(moved))
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        deploy.path.unlink()
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        deploy.path.write_text("{")
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        ssh = {"b1": {"ssh": {"host": "10.0.0.9", "user": "pi", "port": None, "key": None}}}
        done.append(await deploy.form(moved, ssh, settings=replace(SETTINGS, context=80).to_dict()))
        assert ClusterFile.read(deploy.path).boards[1].ssh == SshAccess("10.0.0.9", "pi")
        assert await deploy.answer() == generate(PROMPT, 20)
        return [(d["changed"], d["epoch"], sum(d["loaded_bytes"].values())) for d in done]

    changed = [(True, 1), (True, 2), (False, 2), (True, 3), (False, 3), (True, 3), (True, 3), (True, 3)]
    done = deploy(go)
    assert [x[:2] for x in done] == changed and [x[2] for x in done][1:] == [0] * 7


def test_a_board_that_left_the_inventory_gets_no_section_any_more(deploy):
    async def go(boards, deploy):
        await deploy.form()
        rest = {n: a for n, a in boards.addresses.items() if n != "b1"}
        done = await deploy.form(rest)
        assert await deploy.answer() == generate(PROMPT, 20)
        return done, ClusterFile.read(deploy.path).addresses() == rest

    done, same = deploy(go, 3, make_manifest())
    assert same and {s["board"] for s in done["sections"]} == {"b0", "b2"} and "board b1 is gone" in done["reason"]


def test_another_manager_is_waited_for(deploy, monkeypatch):
    monkeypatch.setattr("edgellm.controller.forming._RETRY_FOR_S", 10.0)

    async def go(boards, deploy):
        holding = boards.agents[1].holding
        holding._claim = ("another manager", 7)
        forming = asyncio.create_task(deploy.form())
        await until(lambda: deploy.told)
        holding._claim = None
        return await forming, deploy.told

    done, told = deploy(go)
    assert done["changed"] and told[0] == "another manager is giving board b1 a plan; trying again …"


def test_a_board_that_can_not_load_is_named_and_the_plan_before_stays(deploy):
    async def go(boards, deploy):
        await deploy.form()
        before = deploy.path.read_bytes()
        boards.broken.add("b1")
        with pytest.raises(BoardError, match="board b1 .*SHA-256 differs"):
            await deploy.form(settings=replace(SETTINGS, context=80).to_dict())
        assert deploy.path.read_bytes() == before
        boards.broken.clear()
        assert await deploy.answer() == generate(PROMPT, 20)
        assert [a.holding.epoch for a in boards.agents] == [1, 1]

    deploy(go)


def test_a_cluster_is_formed_over_tls_and_its_file_says_where_the_certificate_is(deploy, tmp_path):
    tls = make_cluster(tmp_path / "config" / "tls", ["b0", "b1"])

    async def go(boards, deploy):
        done = await deploy.form(tls=str(tls / "manager"))
        assert await deploy.answer() == generate(PROMPT, 20)
        with pytest.raises(BoardError, match="no board answers: board b0 .*its certificate belongs to another cluster"):
            await deploy.form(tls=str(tls / "other" / "manager"))
        return done, ClusterFile.read(deploy.path)

    done, file = deploy(go, tls=tls)
    assert done["changed"] and file.tls == "tls/manager"


# The canary


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return split_tiny(tmp_path_factory.mktemp("tiny"))


def canary(tiny: Path, tmp_path: Path, harm=lambda boards: None, context=64, times=1):
    """(tokens of each time, what was told) of a cluster with two boards."""
    path, told = tmp_path / "cluster.json", []

    async def go():
        async with Boards(tiny, 2, real=True) as boards:
            plan = await boards.form((0, 2, 5), chunk=8, context=context)
            file = ClusterFile.make(tiny, boards.addresses, plan)
            harm(boards)
            ask = lambda: forming.canary(file, path, tmp_path / "cache", told.append)  # noqa: E731
            return [await asyncio.to_thread(ask) for _ in range(times)]

    return run(go(), 100), told


@pytest.mark.native
def test_a_right_answer_is_compared_with_the_reference_once(tiny, tmp_path):
    (first, second), told = canary(tiny, tmp_path, times=2)
    assert first == second and len(first) == forming.CANARY_TOKENS
    assert told == ["computing the reference answer, once for this model …"]
    (file,) = (tmp_path / "cache").iterdir()
    assert json.loads(file.read_text()) == first


@pytest.mark.native
@pytest.mark.parametrize("remembered", [None, "right", "[1, 2, 3, 4, 5, 6, 7, true]", "[" * 100_000],
                         ids=["nothing", "right", "odd", "deep"])
def test_a_wrong_answer_is_told_whatever_is_remembered(tiny, tmp_path, remembered):
    right = canary(tiny, tmp_path)[0][0]
    (file,) = (tmp_path / "cache").iterdir()
    if remembered is None:
        file.unlink()
    elif remembered != "right":
        file.write_text(remembered)

    def harm(boards):
        section = boards.agents[1].stage.section
        really = section.forward_many
        section.forward_many = lambda steps: [None if logits is None else -logits for logits in really(steps)]

    with pytest.raises(BoardError) as e:
        canary(tiny, tmp_path, harm)
    assert "the cluster's answer to the canary question is wrong: token " in str(e.value)
    assert "'edgellm verify' names the layer and the board." in str(e.value)
    assert canary(tiny, tmp_path)[0][0] == right  # the wrong one wasn't remembered


@pytest.mark.native
def test_what_another_version_remembered_counts_no_more(tiny, tmp_path):
    right = canary(tiny, tmp_path)[0][0]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(json.dumps([(t + 1) % 100 for t in right]))
    (tokens,), told = canary(tiny, tmp_path)
    assert tokens == right and told and json.loads(file.read_text()) == right


@pytest.mark.native
def test_a_short_context_has_a_short_canary(tiny, tmp_path):
    (tokens,), _ = canary(tiny, tmp_path, context=10)
    assert 1 <= len(tokens) < forming.CANARY_TOKENS
