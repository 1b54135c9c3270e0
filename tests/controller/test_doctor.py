"""Facts to findings, by tables: one thing wrong at a time, and a word of it in the finding."""

from dataclasses import replace

import pytest

from edgellm.controller.doctor import HERE, Facts, Unit, diagnose, report, summary

MANIFEST = {"embedding.safetensors": (100, "e" * 64), "layer-0000.safetensors": (200, "a" * 64)}
GOOD_UNIT = Unit("loaded", "active", "running", "enabled", 0, 86400.0)
GOOD = Facts(
    "pi1", version="0.1.0", our_version="0.1.0", unit=GOOD_UNIT, skew_s=0.02, link_mbit=1000, temperature_c=52.0,
    throttled=False, undervoltage=False, firmware=0, ram_total_bytes=4_000_000_000, offered_bytes=3_000_000_000,
    need_bytes=2_000_000_000, disk_free_bytes=9_000_000_000, read_bytes_per_s=84e6, model_sha256="f" * 64,
    manifest_sha256="f" * 64, manifest=MANIFEST, needed=frozenset(MANIFEST), files={"embedding.safetensors": 100,
    "layer-0000.safetensors": 200, "manifest.json": 5}, sums={n: s for n, (_, s) in MANIFEST.items()},
    certificate_days=364.0, ca_days=3000.0, key_mode="600", path="native", native_elsewhere=True, kernels="neon",
)  # fmt: skip


def unit(**changes) -> dict:
    return {"unit": replace(GOOD_UNIT, **changes)}


def test_a_healthy_board_has_no_findings_and_a_short_line():
    assert diagnose(GOOD) == []
    assert summary(GOOD) == (
        "edgellm 0.1.0, 52 °C, link 1000 Mb/s, reads 84 MB/s, 9.0 GB of disk free, 2 files of the model verified, "
        "clock +0.0 s, certificate for 364 days"
    )


def test_what_is_not_known_is_no_finding():
    assert diagnose(Facts("pi1")) == []
    assert summary(Facts("pi1", has_ssh=False)) == "no SSH in the cluster file: only what its agent reports"
    assert summary(Facts(HERE, has_ssh=False)) == ""


@pytest.mark.parametrize(
    ("changes", "about", "words"),
    [
        ({"ssh_error": "SSH refuses edge"}, "reach", "SSH refuses edge"),
        ({"is_root": False}, "reach", "sudo"),
        ({"tcp_error": "10.0.0.1:7710 refuses connections"}, "reach", "firewall"),
        ({"tcp_error": "no answer from pi1:7711", "port": 7711}, "reach", "TCP port 7711 (with ufw: 'sudo ufw allow 7"),
        ({"tcp_error": "no answer", "reached_by": ("pi2", "pi3")}, "reach", "no answer, though pi2, pi3 can reach it."),
        ({"tcp_error": "no answer", "ssh_error": "no answer by SSH", "reached_by": ("pi2",)}, "reach", "this machine's "
         "network"),
        ({"pairs": (("pi2 can't reach pi1 at h:1: no answer", "Allow it."),)}, "pairs", "no answer. Allow it."),
        ({"tcp_error": "no answer", "has_ssh": False}, "reach", "Check that it runs"),
        ({"tcp_error": "no answer", "ssh_error": "no answer by SSH"}, "reach", "can't be reached: no answer. Check"),
        ({"wire_error": "refused: version 3, this agent speaks 2"}, "reach", "edgellm upgrade"),
        ({"wire_error": "its certificate has expired"}, "reach", "renews"),
        ({"wire_error": "its certificate is not valid yet; are the clocks right?"}, "reach", "Compare 'date' there"),
        ({"wire_error": "it doesn't speak TLS"}, "reach", "edgellm deploy"),
        ({"wire_error": "no status within 4 s"}, "reach", "edgellm logs pi1"),
        ({"idle": "no section"}, "plan", "does not serve its section: no section. Ask anything"),
        ({"idle": "has another model", "model_sha256": "0" * 64}, "shards", "another model"),
        (unit(load="not-found", active="inactive", sub="dead", enabled=""), "agent", "not installed"),
        (unit(active="failed", sub="failed"), "agent", "does not run (failed, failed). 'edgellm logs pi1' says why"),
        (unit(active="activating", sub="auto-restart", restarts=0), "agent", "activating, auto-restart"),
        (unit(enabled="disabled"), "agent", "not start after a reboot (disabled)"),
        (unit(restarts=3, since_s=300.0), "agent", "restarted 3 times, the last time 5 minutes ago"),
        ({"version": "0.2.0"}, "version", "runs edgellm 0.2.0, this machine 0.1.0"),
        ({"skew_s": 7200.5}, "clock", "2 hours ahead of"),
        ({"skew_s": -6.0}, "clock", "6 s behind"),
        ({"link_mbit": 100}, "link", "100 Mb/s"),
        ({"temperature_c": 81.4}, "heat", "81 °C, and slows down soon"),
        ({"temperature_c": 85.0, "throttled": True}, "heat", "slows down now"),
        ({"throttled": True}, "heat", "is throttled (52 °C)"),
        ({"firmware": 0x40000}, "heat", "since it booted"),
        ({"undervoltage": True}, "power", "too weak now"),
        ({"firmware": 0x1}, "power", "too weak now"),
        ({"firmware": 0x10000}, "power", "since it booted"),
        ({"read_bytes_per_s": 8.2e6}, "disk", "reads 8.2 MB/s, expected 20"),
        ({"disk_free_bytes": 400_000_000}, "disk", "0.40 GB of its disk are free, expected 1"),
        ({"offered_bytes": 600_000_000}, "ram", "offers 0.60 GB, its section needs 2.00 GB"),
        ({"ram_total_bytes": 380_000_000}, "ram", "has 0.38 GB of RAM; its system takes some 0.20 GB of it and the "
                                                  "agent 0.12 GB"),
        ({"ram_total_bytes": 760_000_000, "path": "generic", "native_elsewhere": False}, "ram", "the agent 0.50 GB"),
        ({"path": "generic", "native_elsewhere": True}, "compute", "sets edgellm_path for all of them"),
        ({"kernels": "scalar"}, "compute", "none of the instructions that fast kernels need"),
        ({"model_sha256": "0" * 64}, "shards", "another model (000000000000…, expected ffffffffffff…)"),
        ({"files": {"embedding.safetensors": 100}, "sums": {}}, "shards", "lacks layer-0000.safetensors"),
        ({"files": {}, "sums": None}, "shards", "lacks embedding.safetensors, layer-0000.safetensors"),
        ({"sums": {"layer-0000.safetensors": "b" * 64}}, "shards", "damaged: layer-0000.safetensors"),
        ({"sums": {"layer-0000.safetensors": ""}}, "shards", "can't be read: layer-0000.safetensors"),
        ({"files": {**GOOD.files, "layer-0000.safetensors": 199}, "sums": None}, "shards", "damaged: layer-0000"),
        ({"manifest_error": "model/manifest.json: no such file"}, "shards", "no such file"),
        ({"certificate_error": "its certificate can't be read"}, "certificates", "can't be read"),
        ({"certificate_days": 12.4}, "certificates", "certificate ends in 12 days"),
        ({"certificate_days": -3.0}, "certificates", "certificate ended 3 days ago"),
        ({"ca_days": 29.0}, "certificates", "CA certificate ends in 29 days"),
        ({"key_mode": "644"}, "certificates", "mode 644, expected 600"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_finding_with_a_way_out(changes, about, words):
    findings = diagnose(replace(GOOD, **changes))
    assert [f.about for f in findings] == [about]
    assert findings[0].board == "pi1" and findings[0].todo.endswith(".")
    assert words in f"{findings[0].what}. {findings[0].todo}"


@pytest.mark.parametrize(
    "changes",
    [
        {"skew_s": 4.9},
        {"temperature_c": 79.9},
        {"link_mbit": 2500},
        {"ram_total_bytes": 480_000_000},  # of a board of 512 MB
        {"ready": True},
        {"certificate_days": 30.0},
        unit(restarts=2, since_s=90000.0),  # yesterday's
        {"files": {**GOOD.files, "layer-0001.safetensors.part": 7}},  # not ours to judge
        {"throttled": None, "firmware": None, "temperature_c": None},
    ],
)
def test_what_is_near_but_fine(changes):
    assert diagnose(replace(GOOD, **changes)) == []


def test_an_agent_that_does_not_run_is_named_once_though_its_port_is_closed_too():
    facts = replace(GOOD, tcp_error="refuses", wire_error="refuses", unit=replace(GOOD_UNIT, active="inactive"))
    assert [f.about for f in diagnose(facts)] == ["agent"]


@pytest.mark.parametrize("error", ["refused this manager's certificate: it has expired, by the peer's clock",
                                   "its certificate is not valid yet; are the clocks right?"])  # fmt: skip
def test_a_wrong_clock_is_named_before_the_certificates_that_fail_by_it(error):
    found = diagnose(replace(GOOD, skew_s=-86400.0 * 400, wire_error=error, version=None))
    assert [f.about for f in found] == ["clock", "reach"]
    assert "timedatectl" in found[0].todo and found[1].todo.startswith("Set its clock first")
    assert "eploy" not in str(found)


def test_a_board_that_has_just_started_says_so():
    assert ", loads its section at the next question, " in summary(replace(GOOD, ready=True))


def test_a_board_that_cannot_be_reached_at_all_is_one_finding():
    facts = Facts("pi1", tcp_error="no answer", wire_error="no answer", ssh_error="no answer by SSH")
    assert [f.about for f in diagnose(facts)] == ["reach"]


def test_many_missing_shards_are_counted_not_listed():
    names = frozenset(f"layer-{i:04}.safetensors" for i in range(20))
    (finding,) = diagnose(Facts("pi1", needed=names, files={}))
    assert finding.what.endswith("layer-0002.safetensors and 17 more")


def test_the_report_is_plain_json_values():
    import json

    facts = replace(GOOD, link_mbit=100)
    content = json.loads(json.dumps(report(facts, diagnose(facts))))
    assert content["board"] == "pi1" and content["findings"][0]["about"] == "link"
    assert content["facts"]["files"] == 3 and content["facts"]["sums"] == 2
    assert content["facts"]["unit"]["active"] == "active"
