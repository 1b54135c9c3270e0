"""Experts: what a layer gives against a plain computation in float64, and the same bits per token however it is
computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_split import make_spec_split, pack, packable
from native_sections import difference, rounded

from edgellm.kernels import library
from edgellm.model.families.feed_forwards import Experts, GatedMlp, PlainMlp, Router
from edgellm.model.families.parts import Matrix, Norm, Projection, Vector, rms_norm, whole
from edgellm.model.families.spec import Layer, Spec
from edgellm.model.generic import packed
from edgellm.model.native.section import NativeSection
from edgellm.shards.manifest import Manifest
from tests.kernels.building import available

HIDDEN, INNER, EXPERTS, TOP_K, LAYERS = 64, 96, 8, 3, 2


def experts_of(name: str, rows: int, columns: int, biased: bool) -> Projection:
    weight = Matrix(f"mlp.experts.{name}.weight", rows, columns, EXPERTS)
    bias = Vector(f"mlp.experts.{name}.bias", EXPERTS * rows, (EXPERTS, rows)) if biased else None
    return Projection(weight, 0, rows, bias)


def make(scoring="softmax", normalise=False, scale=1.0, corrected=False, groups=1, top_groups=1, biased=False,
         activation="silu", limit=0.0, plain=False, shared=None, shared_gate=False) -> Experts:  # fmt: skip
    router = Router(
        whole("mlp.router", EXPERTS, HIDDEN, biased), EXPERTS, TOP_K, scoring, normalise, scale,
        Vector("mlp.correction", EXPERTS) if corrected else None, groups, top_groups,
    )  # fmt: skip
    gate, up = (experts_of(name, INNER, HIDDEN, biased) for name in ("gate", "up"))
    both = {
        "gated": GatedMlp(
            whole("mlp.shared.gate", 32, HIDDEN), whole("mlp.shared.up", 32, HIDDEN),
            whole("mlp.shared.down", HIDDEN, 32, True),
        ),
        "plain": PlainMlp(whole("mlp.shared.up", 32, HIDDEN), whole("mlp.shared.down", HIDDEN, 32), "relu_squared"),
    }  # fmt: skip
    return Experts(
        router, None if plain else gate, up, experts_of("down", HIDDEN, INNER, biased), activation, limit,
        both[shared] if shared else None, whole("mlp.shared_gate", 1, HIDDEN, biased) if shared_gate else None,
    )  # fmt: skip


OPTIONS = {
    "softmax": {},
    "normalised": dict(normalise=True, scale=2.5),
    "sigmoid": dict(scoring="sigmoid", corrected=True, normalise=True),
    "groups": dict(scoring="sigmoid", corrected=True, groups=4, top_groups=2, scale=0.5),
    "softmax_of_chosen": dict(scoring="softmax_of_chosen", biased=True, activation="swiglu_clamped", limit=0.7),
    "shared": dict(shared="gated"),
    "shared_gate": dict(normalise=True, shared="gated", shared_gate=True, biased=True),
    "plain": dict(scoring="sigmoid", corrected=True, plain=True, activation="relu_squared", shared="plain"),
    "gelu": dict(activation="gelu_tanh", biased=True),
}


def spec_of(experts: Experts) -> Spec:
    layer = Layer(None, None, rms_norm("norm", HIDDEN), experts)
    return Spec(
        model_type="test", architecture="Test", hidden_size=HIDDEN, vocab_size=50, max_seq_len=1024, eps=1e-6,
        embedding=Matrix("embed.weight", 50, HIDDEN), position_embedding=None, layers=(layer,) * LAYERS,
        final_norm=Norm(Vector("final.weight", HIDDEN)), head=Matrix("head.weight", 50, HIDDEN), tied=False,
        rotaries=(),
    )  # fmt: skip


class Model:
    """Random weights of a Spec, as `encoding` has them, and the section that native code makes of them."""

    def __init__(self, experts: Experts, folder, encoding="f32", seed=0):
        self.spec, self.encoding, self.seed, self.values = spec_of(experts), encoding, seed, {}
        manifest = make_spec_split(self.spec, {"model_type": "test"}, folder, self.read, encoding)
        self.section = NativeSection(self.spec, manifest, folder, 0, LAYERS, without_ends=True)

    def read(self, layer, name):
        kind = "layer" if layer is not None else "embedding" if name == "embed.weight" else "head"
        shape = self.spec.shard_tensors(kind, layer)[name]
        rng = np.random.default_rng([self.seed, layer or 0, *name.encode()])
        values = rng.normal(0, 0.25, shape).astype(np.float32) + (1 if name.startswith(("norm", "final")) else 0)
        is_matrix = name in self.spec.matrices(kind, layer)
        if is_matrix and self.encoding != "f32" and packable(shape[-1], self.encoding):
            self.values[layer, name] = np.stack(
                [packed.unpack(pack(torch.from_numpy(w), self.encoding), self.encoding, w.shape).numpy()
                 for w in values.reshape(-1, *shape[-2:])]
            ).reshape(shape)  # fmt: skip
        else:
            self.values[layer, name] = values
        return values

    def inputs(self, tokens: int) -> np.ndarray:
        return np.random.default_rng(9).normal(0, 1, (tokens, HIDDEN)).astype(np.float32)

    def run(self, x: np.ndarray, chunks=(512,)) -> np.ndarray:
        slot, found, at = self.section.new_slot(1024), [], 0
        for i in range(len(x)):
            if at == len(x):
                break
            count = min(chunks[i % len(chunks)], len(x) - at)
            found.append(self.section.forward(x[at : at + count], at, slot, len(x), 0))
            at += count
        return np.concatenate(found)

    def expected(self, x: np.ndarray) -> np.ndarray:
        for layer in range(LAYERS):
            x = x + self._layer(layer, x)
        return x

    def _layer(self, layer: int, x: np.ndarray) -> np.ndarray:
        experts, router = self.spec.layers[layer].experts, self.spec.layers[layer].experts.router
        x = x.astype(np.float64)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * self.values[layer, "norm.weight"]
        scores = self._project(layer, router.weight, x)
        if router.scoring == "softmax":
            scores = softmax(scores)
        if router.scoring == "sigmoid":
            scores = 1 / (1 + np.exp(-scores))
        choice = scores + (self.values[layer, router.correction.name] if router.correction else 0)
        if router.groups > 1:
            grouped = choice.reshape(len(x), router.groups, -1)
            best = np.sort(grouped, axis=2)[:, :, -2:].sum(2)
            out = np.argsort(-best, axis=1)[:, router.top_groups :]
            for row, groups in zip(grouped, out, strict=True):
                row[groups] = -np.inf
        total = np.zeros_like(x)
        for t, row in enumerate(choice.reshape(len(x), -1)):
            chosen = np.sort(np.argsort(-row, kind="stable")[: router.top_k])
            weights = scores[t, chosen]
            if router.scoring == "softmax_of_chosen":
                weights = softmax(weights[None])[0]
            if router.normalise:
                weights = weights / weights.sum()
            for expert, weight in zip(chosen, weights * router.scale, strict=True):
                total[t] += weight * self._mlp(layer, experts, x[t : t + 1], expert)[0]
        if experts.shared:
            shared = self._mlp(layer, experts.shared, x)
            if experts.shared_gate:
                shared = shared / (1 + np.exp(-self._project(layer, experts.shared_gate, x)))
            total += shared
        return total

    def _project(self, layer, part, x, expert=None):
        weight = self.values[layer, part.weight.name]
        weight = weight if expert is None else weight[expert]
        if self.encoding in packed_encodings() and packable(weight.shape[-1], self.encoding):
            x = rounded(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()
        y = x @ weight.T.astype(np.float64)
        if part.bias:
            bias = self.values[layer, part.bias.name]
            y = y + (bias if expert is None else bias[expert])
        return y

    def _mlp(self, layer, part, x, expert=None):
        up = self._project(layer, part.up, x, expert)
        gate = None if isinstance(part, PlainMlp) or part.gate is None else self._project(layer, part.gate, x, expert)
        kind, inner = part.activation, up if gate is None else gate
        if kind == "silu":
            inner = inner / (1 + np.exp(-inner))
        elif kind == "gelu_tanh":
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        elif kind == "relu_squared":
            inner = np.maximum(inner, 0) ** 2
        else:
            inner, up = np.minimum(gate, part.limit), np.clip(up, -part.limit, part.limit) + 1
            inner = inner / (1 + np.exp(-1.702 * inner))
        return self._project(layer, part.down, inner if gate is None else inner * up, expert)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def packed_encodings():
    return tuple(library.GROUP_BYTES)


@pytest.fixture(autouse=True)
def as_before():
    yield
    library.use_target(None)
    library.set_threads(1)


@pytest.mark.parametrize("name", OPTIONS)
def test_experts_give_what_a_plain_computation_does(name, tmp_path):
    model = Model(make(**OPTIONS[name]), tmp_path)
    x = model.inputs(60)
    assert difference(model.run(x), model.expected(x)) < 2e-6


@pytest.mark.parametrize("encoding", ["bf16", "f16", "int8", "int4", "int4s"])
def test_packed_experts_give_what_their_unpacked_weights_do(encoding, tmp_path):
    """With packed weights inputs are rounded: a value that lies just between two steps, or two experts that are equally
    good, may fall the other way, and from there on the wider bound holds."""
    model = Model(make(**OPTIONS["shared_gate"]), tmp_path, encoding)
    x = model.inputs(60)
    got, expected = model.run(x), model.expected(x)
    assert difference(got, expected, np.median) < 2e-6 and difference(got, expected) < 0.2


@pytest.mark.parametrize("encoding", ["f32", "bf16", "int4", "int8"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_token_has_the_same_bits_in_any_chunk_with_any_threads_and_instruction_set(name, encoding, tmp_path):
    model = Model(make(**OPTIONS[name]), tmp_path, encoding)
    x = model.inputs(70)
    library.use_target("scalar")
    expected = model.run(x, (1,))
    for target in available():
        for threads in (1, 3):
            library.use_target(target)
            library.set_threads(threads)
            for chunks in ((70,), (1,), (3, 40, 2, 17)):
                assert np.array_equal(model.run(x, chunks), expected), (target, threads, chunks)


def test_of_equals_the_first_experts_are_chosen(tmp_path):
    """A router of zeros likes all alike."""
    model = Model(make(), tmp_path)
    router = model.spec.layers[0].experts.router.weight.weight.name
    inner = model.read
    model.read = lambda layer, name: inner(layer, name) * (name != router)
    manifest = make_spec_split(model.spec, {"model_type": "test"}, tmp_path / "equal", model.read)
    equal = NativeSection(model.spec, manifest, tmp_path / "equal", 0, LAYERS, without_ends=True)
    x = model.inputs(5)
    got = equal.forward(x, 0, equal.new_slot(8), 5, 0)
    for layer in range(LAYERS):
        model.values[layer, router] = np.zeros((EXPERTS, HIDDEN), np.float32)
    assert difference(got, model.expected(x)) < 2e-6  # the plain computation sorts stably


def test_values_that_are_no_numbers_choose_experts_all_the_same(tmp_path):
    model = Model(make(**OPTIONS["groups"]), tmp_path)
    x = model.inputs(9)
    expected = model.run(x)
    x[4] = np.nan
    got = model.run(x)
    assert np.isnan(got[4]).all() and np.array_equal(np.delete(got, 4, 0), np.delete(expected, 4, 0))


def test_matrices_of_other_encodings_than_the_router(tmp_path):
    """As in files: the router in float32, gate and up in encodings of their own."""
    model = Model(make(**OPTIONS["shared"]), tmp_path, "int8")
    names = [n for n in model.spec.layers[0].matrices if "router" in n or "experts.up" in n]
    plain = Model(make(**OPTIONS["shared"]), tmp_path / "plain")
    import make_split

    whole_pack = make_split._pack_all
    try:
        asked = []

        def some(weight, encoding):
            asked.append(weight)
            return (weight, "f32") if weight.shape in shapes else whole_pack(weight, encoding)

        shapes = [plain.spec.layers[0].matrices[n].shape for n in names if "router" in n]
        make_split._pack_all = some
        mixed = Model(make(**OPTIONS["shared"]), tmp_path / "mixed", "int8")
    finally:
        make_split._pack_all = whole_pack
    x = mixed.inputs(20)
    assert asked and np.array_equal(mixed.run(x), mixed.run(x, (1, 2)))
    assert difference(mixed.run(x), plain.run(x), np.median) < 0.05


def test_experts_that_are_read_when_a_token_needs_them_give_the_same_bits(tmp_path):
    model = Model(make(**OPTIONS["shared"]), tmp_path, "int8")
    x = model.inputs(40)
    expected = model.run(x)
    manifest = Manifest.read(tmp_path)
    model.section = NativeSection(model.spec, manifest, tmp_path, 0, LAYERS, without_ends=True, swaps=True)
    assert np.array_equal(model.run(x), expected) and np.array_equal(model.run(x, (1, 7)), expected)


def test_the_router_is_part_of_what_every_token_touches():
    experts = make(**OPTIONS["shared_gate"])
    names = {p.weight.name for p in experts.projections}
    assert {"mlp.router.weight", "mlp.shared.gate.weight", "mlp.shared_gate.weight"} <= names
    assert [p.weight.name for p in replace(experts, gate=None).expert_projections] == [
        "mlp.experts.up.weight", "mlp.experts.down.weight",
    ]  # fmt: skip
