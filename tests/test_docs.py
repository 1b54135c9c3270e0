"""What docs/ says about bytes, numbers and names is what the code does."""

import base64
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgellm.checkpoint.shard import Entry, make_plan
from edgellm.checkpoint.tensors import stored_bytes, stored_shape
from edgellm.errors import DIAL_CODES, BoardError, RemoteProtocolError
from edgellm.kernels import library
from edgellm.kernels.library import GROUP, GROUP_BYTES, TILE
from edgellm.manager.client import ClusterClient
from edgellm.manager.pairs import try_pairs
from edgellm.model.generic.packed import pack, unpack
from edgellm.plan import Capacity, Plan, Section
from edgellm.sampling import MAX_BIASES, Sampling
from edgellm.shards import tiles
from edgellm.shards.encodings import ENCODINGS, IQ4_VALUES
from edgellm.shards.manifest import _MAX_MANIFEST_BYTES, Manifest, ModelFile, Shard
from edgellm.shards.tiles import BLOCK_BYTES
from edgellm.wire import (
    answer_messages,
    changing,
    credentials,
    listener,
    protocol,
    reach,
    sequence_messages,
    signed,
    trace_messages,
)
from edgellm.wire import messages as m
from edgellm.wire.asking import State
from edgellm.wire.frames import FrameReader
from edgellm.wire.peer import Peer
from edgellm.wire.section_status import SectionLoading, SectionStatus
from edgellm.wire.status import BoardStatus, Compute, Health
from tests.certificates import make_cluster
from tests.fakes import Boards, ask, connect_all, run

DOCS = Path(__file__).parent.parent / "docs"
WIRE, SHARDS = (DOCS / "wire.md").read_text(), (DOCS / "shards.md").read_text()
_HEX_LINE = re.compile(r"([0-9a-f]{2}(?: [0-9a-f]{2})*)(?:  .*)?\Z")


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a page, as rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        head, _, *rows = ([c.strip().strip("`") for c in line.strip("|\n").split("|")] for line in block.splitlines())
        assert all(len(row) == len(head) for row in rows), block
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def table(text: str, *columns: str) -> list[dict[str, str]]:
    """The one table that has these columns first."""
    (found,) = [t for t in tables(text) if tuple(t[0])[: len(columns)] == columns]
    return found


def names(text: str, column: str) -> set[str]:
    return {row[column].strip("`") for row in table(text, column)}


def blocks(text: str, kind: str) -> list[list[str]]:
    """The lines of each fenced block of this kind."""
    return [body.splitlines() for body in re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)]


def hex_bytes(lines: list[str]) -> bytes:
    """The bytes of lines that are hex pairs and, after two spaces, words."""
    return b"".join(bytes.fromhex(_HEX_LINE.match(line)[1]) for line in lines)


def section(message: type) -> str:
    """What wire.md says of a message."""
    (found,) = re.findall(rf"^### {message.__name__} \({message.TYPE}\)\n(.*?)(?=^##)", WIRE, re.M | re.S)
    return found


def constant(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"edgellm.{module}"), name)


# docs/wire.md


def test_the_table_of_messages_is_complete_with_numbers_and_limits():
    listed = [(int(r["type"]), r["message"], int(r["largest body, bytes"])) for r in table(WIRE, "type", "message")]
    assert listed == [(x.TYPE, x.__name__, x.LIMIT) for x in sorted(m.MESSAGES, key=lambda x: x.TYPE)]


def test_who_may_send_what():
    listed = [{getattr(m, n) for n in r["messages"].split(", ")} for r in table(WIRE, "sender", "receiver")]
    assert listed == [
        set(protocol._FROM_MANAGER), set(protocol._FROM_BOARD_TO_MANAGER), set(protocol._FROM_DIALLING_BOARD),
        set(protocol._FROM_LISTENING_BOARD),
    ]  # fmt: skip


def example(message: type) -> tuple[dict, bytes]:
    (lines,) = blocks(section(message), "hex")
    name, _, content = lines[0].removeprefix("# ").partition(" ")
    assert name == message.__name__
    return json.loads(content), hex_bytes(lines[1:])


@pytest.mark.parametrize("message", m.MESSAGES, ids=lambda x: x.__name__)
def test_the_hex_examples_are_these_messages(message):
    content, raw = example(message)
    ((type_, body),) = FrameReader(lambda type_, size: m.BY_TYPE[type_].LIMIT).feed(raw)
    decoded = m.BY_TYPE[type_].decode(body)
    assert type(decoded) is message
    plain = {k: v.hex() if isinstance(v, bytes) else list(v) if isinstance(v, tuple) else v
             for k, v in vars(decoded).items()}  # fmt: skip
    assert plain == content
    assert m.encode(decoded) == raw


@pytest.mark.parametrize("message", m.MESSAGES, ids=lambda x: x.__name__)
def test_field_tables_have_no_gaps_and_the_sizes_of_the_structs(message):
    rows, at = [r for t in tables(section(message)) if tuple(t[0])[0] == "offset" for r in t], 0
    for row in rows:
        assert row["offset"].isdigit() is (at is not None), row
        assert at is None or int(row["offset"]) == at, row
        fixed = row["size"].isdigit()
        bits = re.match(r"u(\d+)", row["type"])
        assert not fixed or not bits or int(bits[1]) == 8 * int(row["size"]), row
        at = at + int(row["size"]) if fixed and at is not None else None
    s, a = sequence_messages, answer_messages
    sizes = {
        m.Open: s._OPEN, m.Queued: s._QUEUED, m.Opened: s._OPENED, m.Start: s._START, m.Close: s._SEQUENCE,
        m.Closed: s._SEQUENCE, m.Hidden: s._HIDDEN, m.Tokens: a._TOKENS, m.Failed: s._FAILED, m.Logits: a._LOGITS,
        m.Logprobs: a._LOGPROBS, m.Prefilled: a._PREFILLED, m.Embedded: a._EMBEDDED, m.Trace: trace_messages._TRACE,
        m.Traced: trace_messages._TRACED,
    }  # fmt: skip
    fixed = sum(int(r["size"]) for r in rows if r["size"].isdigit())
    if message in sizes:
        assert fixed == sizes[message].size
    elif all(r["size"].isdigit() for r in rows):
        assert fixed == message.LIMIT


def test_field_names_are_the_dataclasses_own():
    for message in (
        m.Ping, m.Pong, m.Open, m.Queued, m.Opened, m.Start, m.Hidden, m.Tokens, m.Failed, m.Logits, m.Logprobs,
        m.Trace, m.Traced, m.Prefilled, m.Embedded,
    ):  # fmt: skip
        listed = [r["field"] for r in table(section(message), "offset")]
        own = {f.name for f in fields(message)}
        assert set(listed) - {"padding", "options_bytes", "board_bytes", "count"} == own - {"count"}, message


def test_finish_reasons_and_failure_codes():
    assert [(int(r["finish"]), r["name"]) for r in table(WIRE, "finish", "name")] == list(enumerate(m.FINISH))
    assert [(int(r["code"]), r["name"]) for r in table(WIRE, "code", "name")] == list(enumerate(m.FAILURES))


def test_states_of_an_answer_and_of_a_change():
    assert [(r["state"], r["meaning"]) for r in table(WIRE, "state", "meaning")] == [(s.name, s.value) for s in State]
    change = [(r["state of a change"], r["meaning"]) for r in table(WIRE, "state of a change")]
    assert change == [(s.name, s.value) for s in changing.State]


def test_outcomes_of_a_dial():
    assert [r["outcome"] for r in table(WIRE, "outcome", "meaning")] == ["ok", *DIAL_CODES]
    assert f"at most {reach._MAX_REASON} characters" in section(m.Reached)


def test_version_and_its_refusal():
    assert f"This is wire version {m.VERSION}." in WIRE
    with pytest.raises(RemoteProtocolError) as e:
        m.Hello.decode(m.Hello("manager", "pc", version=9, oldest=9).encode())
    assert f"    {e.value}\n" in WIRE


def test_the_constants_of_time_and_limits():
    rows = [(r["constant"], r["seconds"]) for r in table(WIRE, "phase", "constant")]
    rows += [(r["constant"], r["value"]) for r in table(WIRE, "what", "constant")]
    assert len(rows) >= 26
    for path, value in rows:
        assert constant(path) == float(value), path
    own = {n for n in vars(importlib.import_module("edgellm.config")) if n.endswith("_S")}
    assert {p.removeprefix("config.") for p, _ in rows if p.startswith("config.")} == own


def test_bytes_of_a_decoded_token():
    hidden = m.encode(m.Hidden(1, 2, 3, 4, 1, (1,), bytes(4 * 576)))
    overhead, token = re.search(r"`4 \* hidden_size \+ (\d+)` bytes:.*?Tokens of (\d+) bytes", WIRE, re.S).groups()
    assert len(hidden) - 4 * 576 == int(overhead) and len(m.encode(m.Tokens(1, 2, 3, 0, (4,)))) == int(token)
    assert f"(hidden_size + 1) * max(chunk, 16) + {m.Hidden.OVERHEAD}`" in WIRE


def test_sampling_fields_defaults_and_ranges():
    rows = table(WIRE, "field of sampling")
    assert {r["field of sampling"]: type(getattr(Sampling(), r["field of sampling"]))(r["default"]) for r in rows} == (
        {name: value for name, value in Sampling().to_dict().items() if name != "logit_bias"}
    )
    assert f"at most {MAX_BIASES} pairs" in WIRE and Sampling().logit_bias == ()
    for row in rows:
        name, kind = row["field of sampling"], {"number": float, "integer": int}[row["type"]]
        low, high = (kind(x) for x in row["range"].split(";")[0].split(" to "))
        assert Sampling(**{name: low}) and Sampling(**{name: high})
        for beyond in (low - (1 if kind is int else 1e-6), high + (1 if kind is int else 1e-6)):
            with pytest.raises(Exception, match=name.replace("_", "-")):
                Sampling(**{name: beyond})


def philox(seed: int, position: int) -> float:
    """The random number as docs/wire.md describes it, without NumPy."""
    mask, counter, key = (1 << 64) - 1, [position + 1, 0, 0, 0], [seed, 0]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [b >> 64 ^ counter[1] ^ key[0], b & mask, a >> 64 ^ counter[3] ^ key[1], a & mask]
        key = [key[0] + 0x9E3779B97F4A7C15 & mask, key[1] + 0xBB67AE8584CAA73B & mask]
    return (counter[0] >> 11) * 2.0**-53


def test_random_numbers_of_seed_and_position():
    from edgellm.model.sampler import _uniform

    rows = table(WIRE, "seed", "position")
    assert len(rows) == 4
    for row in rows:
        arguments = int(row["seed"]), int(row["position"])
        assert _uniform(*arguments) == float(row["u"]) == philox(*arguments)


def test_a_token_is_drawn_as_the_steps_say():
    from edgellm.model.sampler import sample

    rng = np.random.default_rng(0)
    for position in range(1, 60):
        logits, history = rng.normal(size=50).astype(np.float32) * 3, [int(i) for i in rng.integers(0, 50, position)]
        sampling = Sampling(
            temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repeat_penalty=1.3, seed=5, presence_penalty=0.3,
            frequency_penalty=0.2, logit_bias={7: 1.5, 9: -2.0},
        )  # fmt: skip
        began = position // 2
        scores = {}
        for i, logit in enumerate(logits):
            logit = np.float32(logit)
            if i in history:
                logit = logit / np.float32(1.3) if logit > 0 else logit * np.float32(1.3)
            if i in history[began:]:
                logit = logit - np.float32(0.3 + 0.2 * history[began:].count(i))
            logit = logit + np.float32({7: 1.5, 9: -2.0}.get(i, 0.0))
            scores[i] = float(logit) / 0.7
        best = sorted(scores, key=lambda i: (-scores[i], i))[:20]
        p = [np.exp(scores[i] - scores[best[0]]) for i in best]
        p = [x / sum(p) for x in p]
        p = [x for k, x in enumerate(p) if sum(p[:k]) < 0.9]
        p = [x for x in p if x >= 0.02 * p[0]]
        draw, running = philox(5, position) * sum(p), np.cumsum(p)
        expected = best[next(k for k, c in enumerate(running) if c > draw)]
        assert sample(logits, history, sampling, position, began) == expected


def test_json_fields_of_plans_boards_and_answers(tmp_path):
    assert names(WIRE, "field of plan") == {f.name for f in fields(Plan)}
    assert names(WIRE, "field of capacity") == {f.name for f in fields(Capacity)}

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan, stats = await boards.form((0, 3, 6)), {}
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await ask(cluster, [1, 2, 3], stats=stats)
            clients = await connect_all(boards.addresses)
            try:
                return (await clients[0].ask(m.AskStatus(), m.Status)).content, stats["b0"].to_dict()
            finally:
                for client in clients:
                    client.close()

    told, stats = run(go())
    (top,) = [t for t in tables(section(m.Status)) if tuple(t[0])[:2] == ("field", "type")]
    assert {r["field"].strip("`") for r in top} == set(told) == set(BoardStatus.from_dict("b0", told).to_dict())
    assert names(WIRE, "field of capacity") == set(told["capacity"])
    assert names(WIRE, "field of compute") == set(told["compute"]) == {f.name for f in fields(Compute)}
    assert names(WIRE, "field of section") == set(told["section"]) == {f.name for f in fields(SectionStatus)}
    assert names(WIRE, "field of loading") == {f.name for f in fields(SectionLoading)} and told["beside"] == []
    assert names(WIRE, "field of health") == set(told["health"]) == {f.name for f in fields(Health)}
    assert set(told["shards"]) == {"embedding", "layers", "head", "damaged"} and told["shards"]["layers"] == [[0, 6]]
    assert names(WIRE, "stat") == set(stats)


def test_json_fields_of_claims_and_commits_and_the_options_of_an_open(tmp_path, monkeypatch):
    """What a manager sends and a board answers, seen on the wire."""
    seen = {}
    send = Peer.send

    def look(peer, *messages):
        for message in messages:
            content = message.options if isinstance(message, m.Open) else getattr(message, "content", {})
            seen.setdefault(type(message), set()).update(content)
        send(peer, *messages)

    monkeypatch.setattr(Peer, "send", look)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await ask(cluster, [1, 2, 3])
            assert not any(pair.broken for pair in await try_pairs(boards.addresses))
            with pytest.raises(BoardError, match="context of 5000"):
                await boards.form((0, 3, 6), epoch=2, context=5000)

    run(go())
    seen[m.Commit] |= {"drain", "unload"}  # of changes that aren't needed
    seen[m.Assign] |= {"certificate", "signature", "drain"}
    for message in (m.Claim, m.Claimed, m.Assigned, m.Commit, m.Committed):
        assert names(WIRE, f"field of {message.__name__.lower()}") == seen[message], message
    coming = {"began", "logprobs", "slot", "wait_s", "constraint", "cache", "progress", "pool"}
    assert names(WIRE, "option") == seen[m.Open] | coming
    for message in (m.Reach, m.Reached):
        assert names(WIRE, f"field of {message.__name__.lower()}") == seen[message], message
    _, words = [r["meaning"] for r in table(section(m.Assign), "offset")]
    assert set(re.findall(r"(\w+)`(?: \(below\))?[,:;]", words)) == seen[m.Assign]


def test_the_digest_of_the_plan_in_the_example():
    plan = Plan.from_dict(example(m.Assign)[0]["content"]["plan"])
    assert f"the example is `{plan.digest}`" in " ".join(section(m.Assign).split())
    assert example(m.Open)[0]["options"]["plan"] == plan.digest


def test_identities_and_the_alert_of_tls():
    uris = (credentials.BOARD_URI, credentials.MANAGER_URI, credentials.ADMIN_URI)
    assert all(f"`{uri}NAME`" in WIRE for uri in uris) and f"`{credentials.OLD_MANAGER_URI}`" in WIRE
    files = (*credentials.FILES, credentials.CRL_FILE, credentials.REVOKED_FILE)
    assert all(f"`{name}`" in WIRE for name in files)
    assert f"protocol_version (`{listener._NO_TLS_ALERT.hex(' ')}`)" in WIRE


def test_a_plan_signed_as_the_page_says_is_believed(tmp_path):
    """By hand, from the page alone."""
    folder = make_cluster(tmp_path, ["pi1"])
    addresses = {"pi1": ["10.0.0.1", 7710]}
    plan = Plan(3, "m", "ab" * 32, 4, "latency", 128, 2, 32, "float16", (Section("pi1", 0, 4),)).to_dict()
    text = json.dumps({"addresses": addresses, "plan": plan}, sort_keys=True, separators=(",", ":"))
    key = serialization.load_pem_private_key((folder / "manager/key.pem").read_bytes(), None)
    assert "`edgellm plan 4`, a line feed," in WIRE and "ECDSA P-256" in WIRE and "at most 64. Without TLS" in WIRE
    signature = base64.b64encode(key.sign(b"edgellm plan 4\n" + text.encode(), ec.ECDSA(hashes.SHA256()))).decode()
    certificate = (folder / "manager/cert.pem").read_text()
    content = {"plan": plan, "addresses": addresses, "certificate": certificate, "signature": signature}
    assert signed.Trust(folder / "boards/pi1").plan(content)[0].epoch == 3
    assert signed.MAX_BOARDS == 64


# docs/security.md


def test_every_way_out_is_tested_by_a_test_that_exists():
    page = (DOCS / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 12
    for path, test in named:
        assert f"def {test}(" in (DOCS.parent / path).read_text(), f"{path}::{test}"


# docs/shards.md


def test_manifest_fields():
    (top,) = [t for t in tables(SHARDS) if tuple(t[0])[:2] == ("field", "type")]
    # `sha256` is the manifest's own, which it can't hold.
    assert {r["field"] for r in top} == {f.name for f in fields(Manifest)} - {"sha256"}
    assert names(SHARDS, "field of a shard") == {f.name for f in fields(Shard)}
    assert names(SHARDS, "field of a file") == {f.name for f in fields(ModelFile)}
    assert f"at most {_MAX_MANIFEST_BYTES} bytes" in SHARDS


def test_format_numbers():
    rows = table(SHARDS, "what", "constant")
    assert {r["constant"]: str(constant(r["constant"])) for r in rows} == {r["constant"]: r["value"] for r in rows}
    assert constant("model.generic.shardfile.FORMAT") == constant("checkpoint.shard.SHARD_FORMAT")


def test_sizes_of_encodings():
    rows = {r["encoding"]: int(r["bytes of 16 rows by 32 columns"]) for r in table(SHARDS, "encoding", "dtype")}
    assert rows == {e: stored_bytes((16, 32), e) for e in rows}
    assert {e: n for e, n in rows.items() if e not in library.VALUE_BYTES} == GROUP_BYTES == library.GROUP_BYTES
    assert (TILE, GROUP, BLOCK_BYTES) == (library.TILE, library.GROUP, tiles.BLOCK_BYTES) == (16, 32, BLOCK_BYTES)
    for shape in ((1, 256), (16, 512), (17, 768), (3, 17, 256)):
        assert all(stored_shape(shape, e) == library.stored_shape(e, shape) for e in rows)


@pytest.mark.parametrize("encoding, row", [("int4", 2), ("int4s", 2), ("int8", 15)])
def test_group_examples_decode_to_the_values_beside_them(encoding, row):
    (lines,) = blocks(SHARDS, f"group {encoding} {row}")
    group, values = np.zeros(GROUP_BYTES[encoding], np.uint8), []
    for line in lines:
        if line.startswith("="):
            values += [float(x) for x in line[1:].split()]
        else:
            at, _, hexes = line.partition(": ")
            given = hex_bytes([hexes])
            group[int(at) : int(at) + len(given)] = list(given)
    expected = np.zeros((16, 32), np.float32)
    expected[row] = values
    assert np.array_equal(unpack(torch.from_numpy(group[None]), encoding, (16, 32)).numpy(), expected)


BLOCK_EXAMPLES = [
    ("q4_k", 2, 5), ("q5_k", 2, 1), ("q6_k", 2, 1), ("q3_k", 2, 6), ("q2_k", 2, 3), ("iq4_xs", 2, 5), ("iq4_nl", 2, 0),
    ("mxfp4", 2, 0), ("q5_0", 2, 0), ("q5_1", 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("encoding, row, group", BLOCK_EXAMPLES)
def test_block_examples_decode_to_the_values_beside_them(encoding, row, group):
    columns = library.BLOCK_COLUMNS[encoding]
    (lines,) = blocks(SHARDS, f"block {encoding} {row} {group}")
    block, expected = np.zeros(GROUP_BYTES[encoding] * columns // 32, np.uint8), []
    for line in lines:
        if line.startswith("="):
            expected += [float(x) for x in line[1:].split()]
        else:
            at, _, hexes = line.partition(": ")
            given = hex_bytes([hexes])
            block[int(at) : int(at) + len(given)] = list(given)
    values = unpack(torch.from_numpy(block[None]), encoding, (16, columns)).numpy()
    assert values[row, 32 * group : 32 * group + 32].tolist() == expected


def test_every_packed_encoding_has_an_example_and_its_planes():
    assert {e for e, *_ in BLOCK_EXAMPLES} | {"int4", "int4s", "int8"} == set(ENCODINGS)
    for row in table(SHARDS, "encoding", "planes"):
        layout = ENCODINGS[row["encoding"]]
        assert row["planes"] == ", ".join(map(str, layout.planes))
        assert int(row["bytes of a group's codes"]) == 64 * layout.bits
        sizes = [{"f16": 2, "u8": 1, "4": 4, "2": 2}[part.split()[0]] for part in row["arrays of scales"].split(", ")]
        assert tuple(sizes) == layout.scales
    assert ", ".join(map(str, IQ4_VALUES)) in " ".join(SHARDS.split()) and "e is at most 252" in SHARDS


@pytest.mark.parametrize("encoding, levels, low", [("int4", 15, 0), ("int8", 127, -127)])
def test_blocks_are_quantized_as_the_page_says(encoding, levels, low):
    rng = np.random.default_rng(1)
    for scale in (1e-6, 0.03, 1.0, 300.0):
        w = (rng.normal(size=32) * scale).astype(np.float32)
        minimum = np.float32(0)
        if encoding == "int4":
            half = np.float16(w.min())
            minimum = np.float32(half if half <= w.min() else np.nextafter(half, np.float16(-np.inf)))
        span = w.max() - minimum if encoding == "int4" else np.abs(w).max()
        d = np.float16(span / np.float32(levels))
        d = np.nextafter(d, np.float16(np.inf)) if np.float32(levels + 0.5) * np.float32(d) < span else d
        q = np.clip(np.rint((w - minimum) / np.float32(d)), low, levels)
        expected = q.astype(np.float32) * np.float32(d) + minimum
        given = unpack(pack(torch.from_numpy(w[None]), encoding), encoding, (1, 32)).numpy()[0]
        assert np.array_equal(given, expected)


def test_a_shards_layout():
    def entry(name, shape, encoding):
        return Entry(name, None, shape, False, encoding in BLOCK_BYTES, encoding)

    entries = [entry("b", (3,), "u8"), entry("a", (2, 64), "int4"), entry("d", (5,), "f32"), entry("c", (3,), "f16")]
    plan = make_plan("layer-0000.safetensors", "layer", 0, entries)
    assert len(plan.header) % 64 == 0 and int.from_bytes(plan.header[:8], "little") == len(plan.header) - 8
    header = json.loads(plan.header[8:])
    metadata = header.pop("__metadata__")
    assert names(SHARDS, "key") == set(metadata)
    assert json.loads(metadata["encodings"]) == {"a": ["int4", [2, 64]]}
    assert [(n, t["data_offsets"]) for n, t in header.items()] == [
        ("a", [0, 640]), ("d", [640, 660]), ("c", [660, 666]), ("b", [666, 669]),
    ]  # fmt: skip
