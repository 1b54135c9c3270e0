"""Signed plans: what an admin signed is read back by every manager, and nothing else is, whoever made it."""

import base64
import json
import shutil
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import BoardError, ClusterError, PlanError, TagError
from edgellm.plan import Plan, Section
from edgellm.wire import signed
from edgellm.wire.signed import Trust, sign
from tests.certificates import make_cluster

PLAN = Plan(7, "m", "ab" * 32, 4, "latency", 128, 2, 32, "float16", (Section("b0", 0, 1), Section("b1", 1, 4)))
ADDRESSES = {"b0": ("10.0.0.1", 7710), "b1": ("board.lan", 7711), "spare": ("fe80::1", 7710)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return make_cluster(tmp_path_factory.mktemp("tls"), ["b0", "b1"])


@pytest.fixture(scope="module")
def good(cluster):
    return sign(PLAN, ADDRESSES, cluster / "manager")


@pytest.fixture(scope="module")
def trust(cluster):
    return Trust(cluster / "manager")


def test_what_an_admin_signed_is_read_back_also_from_json_and_by_other_managers(cluster, good):
    travelled = json.loads(json.dumps(dict(reversed(good.items()))))
    for who in ("manager", "boards/b0"):  # a board could, too: the CA is what counts
        assert Trust(cluster / who).plan(travelled) == (PLAN, ADDRESSES)
    assert set(good) == {"plan", "addresses", "certificate", "signature"}
    assert "PRIVATE" not in json.dumps(good)


def test_the_signature_is_ecdsa_over_the_documented_bytes(cluster, good):
    shown = x509.load_pem_x509_certificate(good["certificate"].encode())
    text = json.dumps({"plan": good["plan"], "addresses": good["addresses"]}, sort_keys=True, separators=(",", ":"))
    shown.public_key().verify(
        base64.b64decode(good["signature"]), b"edgellm plan 4\n" + text.encode(), ec.ECDSA(hashes.SHA256())
    )
    assert shown.public_bytes(serialization.Encoding.PEM) == (cluster / "manager/cert.pem").read_bytes()


def changed(content, *path, to):
    copy = json.loads(json.dumps(content))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return copy


CHANGES = {
    "epoch": (("plan", "epoch"), 8, r"the plan of epoch 8 is not what admin pc signed"),
    "section": (("plan", "sections", 0, "end"), 2, "can't be read: plan: sections"),
    "board": (("plan", "sections", 0, "board"), "spare", r"not what admin pc signed"),
    "host": (("addresses", "b0"), ["10.66.6.6", 7710], r"not what admin pc signed"),
    "port": (("addresses", "b0"), ["10.0.0.1", 1], r"not what admin pc signed"),
    "one more": (("addresses", "evil"), ["10.66.6.6", 7710], r"not what admin pc signed"),
    "bad host": (("addresses", "b0"), ["a b", 7710], r"came with address \['a b', 7710\] for board 'b0'"),
    "bad board": (("addresses", "\x1b[2J"), ["h", 1], r"for board '\\x1b\[2J'"),
    "no addresses": (("addresses",), None, "came with None, expected those of at most 64 boards"),
    "many addresses": (("addresses",), {f"b{i}": ["h", 1] for i in range(65)}, "came with 65 addresses"),
    "address missing": (("addresses",), {"b0": ["h", 1]}, "came without an address for board b1"),
    "no signature": (("signature",), None, "epoch 7 is not signed"),
    "no certificate": (("certificate",), None, "epoch 7 is not signed"),
    "number for a signature": (("signature",), 5, "comes with 5 in place of a signature"),
    "long signature": (("signature",), "A" * 1000, "in place of a signature"),
    "garbage signature": (("signature",), "AAAA", r"not what admin pc signed"),
    "no base64": (("signature",), "é!", "a certificate or a signature that is damaged"),
    "long certificate": (("certificate",), "A" * 9000, "in place of its signer's certificate"),
    "list for a certificate": (("certificate",), ["x"], "in place of its signer's certificate"),
    "empty certificate": (("certificate",), "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "damaged"),
    "text for a certificate": (("certificate",), "hello", "damaged"),
    "no plan": (("plan",), [], "can't be read: plan is"),
    "one more field": (("board",), "b0", "has an unknown field 'board'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_is_one_sentence(trust, good, name):
    path, to, message = CHANGES[name]
    with pytest.raises(TagError, match=message) as e:
        trust.plan(changed(good, *path, to=to))
    assert "\n" not in str(e.value) and str(e.value).isprintable() and isinstance(e.value, BoardError)


@pytest.mark.parametrize("content", [None, [], "x", 7, {}, {"plan": {}}, {1: 2}])
def test_what_is_no_signed_plan_at_all_is_one_sentence(trust, content):
    with pytest.raises(TagError, match="a signed plan (is|lacks|has)"):
        trust.plan(content)


def test_a_signature_of_one_plan_doesn_t_count_for_another(cluster, trust, good):
    other = sign(replace(PLAN, epoch=9), ADDRESSES, cluster / "manager")
    with pytest.raises(TagError, match=r"epoch 9 is not what admin pc signed"):
        trust.plan({**other, "signature": good["signature"]})


def forged(good, folder, plan=PLAN):
    """What the holder of the key in `folder` could make, by hand: `sign` refuses most of them."""
    key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    content = {**good, "plan": plan.to_dict(), "certificate": (folder / "cert.pem").read_text()}
    signature = key.sign(signed._signed_bytes(content), ec.ECDSA(hashes.SHA256()))
    return {**content, "signature": base64.b64encode(signature).decode()}


def test_a_board_s_key_an_asker_s_and_another_cluster_s_make_no_plans(cluster, trust, good):
    evil = replace(PLAN, epoch=(1 << 32) - 1)
    for folder, why in (
        ("boards/b1", r"is signed by board b1, expected an admin"),
        ("asker", r"is signed by manager anna, expected an admin"),
        ("other/manager", r"is signed by someone whom this cluster's CA doesn't know"),
    ):
        with pytest.raises(TagError, match=rf"the plan of epoch 4294967295 {why}"):
            trust.plan(forged(good, cluster / folder, evil))
    with pytest.raises(ClusterError, match="manager anna may ask, but not make a plan: only an admin may"):
        sign(PLAN, ADDRESSES, cluster / "asker")
    with pytest.raises(ClusterError, match="board b1 may ask"):
        sign(PLAN, ADDRESSES, cluster / "boards/b1")


def test_the_ca_itself_signs_no_plans_and_a_key_that_isn_t_the_certificate_s_neither(cluster, trust, good, tmp_path):
    shutil.copytree(cluster / "manager", tmp_path / "ca")
    shutil.copy(cluster / "ca.pem", tmp_path / "ca/cert.pem")
    shutil.copy(cluster / "ca.key", tmp_path / "ca/key.pem")
    with pytest.raises(TagError, match="can't be read|expected an admin"):
        trust.plan(forged(good, tmp_path / "ca"))
    shutil.copy(cluster / "manager/cert.pem", tmp_path / "ca/cert.pem")  # an admin's certificate, not its key
    with pytest.raises(TagError, match=r"not what admin pc signed"):
        trust.plan(forged(good, tmp_path / "ca"))
    with pytest.raises(ClusterError, match="the two don't belong together. Deploy again"):
        sign(PLAN, ADDRESSES, tmp_path / "ca")


def test_two_certificates_in_one_are_refused(cluster, trust, good):
    both = (cluster / "manager/cert.pem").read_text() * 2
    with pytest.raises(TagError, match="damaged"):
        trust.plan({**good, "certificate": both})


def test_an_expired_signer_still_counts_because_a_cluster_goes_on_for_years(cluster, trust, good):
    assert trust.plan(forged(good, cluster / "then")) == (PLAN, ADDRESSES)


def test_a_plan_of_0_1_s_manager_counts(cluster, trust, good):
    assert trust.plan(sign(PLAN, ADDRESSES, cluster / "old-manager")) == (PLAN, ADDRESSES)


def test_without_tls_only_unsigned_plans_count(good):
    unsigned = sign(PLAN, ADDRESSES, None)
    assert (unsigned["certificate"], unsigned["signature"]) == (None, None)
    assert Trust(None).plan(unsigned) == (PLAN, ADDRESSES)
    with pytest.raises(TagError, match="epoch 7 is signed, and this manager has no certificates"):
        Trust(None).plan(good)


def test_an_unsigned_plan_counts_for_nobody_with_certificates(trust):
    with pytest.raises(TagError, match="epoch 7 is not signed"):
        trust.plan(sign(PLAN, ADDRESSES, None))


@pytest.mark.parametrize("folder", ["manager", None])
def test_addresses_that_nobody_would_accept_are_not_signed(cluster, folder):
    many = {f"x{i}": ("h", 1) for i in range(62)}
    for addresses in ({"b0": ("h", 1)}, {**ADDRESSES, "b0": ("h", 0)}, {**ADDRESSES, **many}):
        with pytest.raises(PlanError, match="came with"):
            sign(PLAN, addresses, folder and cluster / folder)


def test_a_folder_without_certificates_is_named(tmp_path):
    for call in (lambda: Trust(tmp_path), lambda: sign(PLAN, ADDRESSES, tmp_path)):
        with pytest.raises(ClusterError, match=r"certificate file .*\.pem: no such file or directory\. Deploy again"):
            call()
    (tmp_path / "ca.pem").write_text("x")
    with pytest.raises(ClusterError, match="Deploy again"):
        Trust(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_comes_is_a_tag_error_or_the_plan_that_was_signed(trust, good, data):
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    field = data.draw(st.sampled_from(sorted(good)))
    kind = data.draw(st.sampled_from(["value", "cut", "byte"]))
    content = dict(good)
    if kind == "value" or not isinstance(good[field], str):
        content[field] = data.draw(json_value)
    elif kind == "cut":
        content[field] = good[field][: data.draw(st.integers(0, len(good[field]) - 1))]
    else:
        at = data.draw(st.integers(0, len(good[field]) - 1))
        content[field] = good[field][:at] + data.draw(st.characters(max_codepoint=0x2FF)) + good[field][at + 1 :]
    try:
        assert trust.plan(content) == (PLAN, ADDRESSES)
    except TagError as e:
        assert "\n" not in str(e) and len(str(e)) < 600
