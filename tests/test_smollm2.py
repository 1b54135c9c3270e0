"""Real SmolLM2-135M-Instruct, served by agents that are processes of their own: the tokens that transformers generates
on the generic path, and those of one process on the native one.

transformers reads the GGUF file itself here: nothing of our split, our kernels or our tokenizer is in its reference.
"""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import perplexity
from edgellm.check.one_process import run_whole
from edgellm.checkpoint.builtin import fetch_builtin
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.config import DEFAULT_MODEL
from edgellm.manager.client import ClusterClient
from edgellm.manager.local import LocalAgents
from edgellm.plan import Plan, Section
from edgellm.shards.manifest import Manifest
from edgellm.text.tokenizer import Tokenizer
from tests.fakes import ask, assign, connect_all, run
from tests.model.make_split import make_split

NEW_TOKENS = 32
LONG = (
    "A lighthouse is a tower with a bright light at the top. It is built near the sea, often on rocks, and warns ships "
    "at night. The first ones burned wood; later ones used oil, then gas, then electricity. Today most of them need "
    "nobody to live in them, for machines keep the light."
)
PROMPTS = ["Why is the sky blue?", "Name three birds that cannot fly.", "What is 17 + 25?", f"Summarise: {LONG}"]


@pytest.fixture(scope="module")
def gguf() -> Path:
    return fetch_builtin(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("smollm2")
    split(open_source(DEFAULT_MODEL), out)
    return out


@pytest.fixture(scope="module")
def model(gguf):
    """transformers' own, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(model, model_dir) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt → (its token ids, transformers' greedy answer)."""
    tokenizer = Tokenizer(model_dir)
    answers = {}
    for prompt in PROMPTS:
        ids = tokenizer.encode_chat([{"role": "user", "content": prompt}])
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        answers[prompt] = ids, out[0, len(ids) :].tolist()
    return answers


@pytest.fixture(scope="module")
def addresses(model_dir, tmp_path_factory):
    """Agents that compute by transformers."""
    with LocalAgents(model_dir, 3, tmp_path_factory.mktemp("logs"), path="generic") as agents:
        yield agents.start()


@pytest.fixture(scope="module")
def native_addresses(model_dir, tmp_path_factory):
    with LocalAgents(model_dir, 5, tmp_path_factory.mktemp("logs")) as agents:
        yield agents.start()


def form(
    model_dir: Path, addresses: dict, cuts: tuple[int, ...], epoch: int, kv_dtype: str = "float32", context: int = 256
) -> Plan:
    manifest = Manifest.read(model_dir)
    sections = tuple(Section(f"local{i}", a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False), 1))
    plan = Plan(epoch, manifest.model, manifest.sha256, manifest.num_layers, "throughput", context, 4, 32, kv_dtype,
                sections)  # fmt: skip

    async def go():
        boards = await connect_all({b: addresses[b] for b in plan.boards})
        try:
            await assign(plan, addresses, boards)
        finally:
            for board in boards:
                board.close()

    run(go(), 60)
    return plan


# One set of processes serves all cases: sections are reassigned from one to the next.
@pytest.mark.parametrize("epoch, cuts", [(1, (0, 14, 30)), (2, (0, 3, 20, 30))])
def test_the_split_gives_the_tokens_of_transformers(model_dir, addresses, expected, epoch, cuts):
    plan = form(model_dir, addresses, cuts, epoch)
    assert max(len(ids) for ids, _ in expected.values()) > 2 * plan.chunk

    async def go():
        async with ClusterClient.dial(plan, addresses) as cluster:
            return await asyncio.gather(*(ask(cluster, ids, NEW_TOKENS) for ids, _ in expected.values()))

    answers = run(go(), 100)
    assert [[c.token for c in answer] for answer in answers] == [tokens for _, tokens in expected.values()]


@pytest.mark.parametrize("epoch, cuts", [(1, (0, 14, 30)), (2, (0, 3, 20, 30)), (3, (0, 1, 9, 15, 29, 30))])
def test_native_sections_give_the_tokens_of_one_process(model_dir, native_addresses, expected, epoch, cuts):
    plan, manifest = form(model_dir, native_addresses, cuts, epoch, "float16"), Manifest.read(model_dir)

    async def go():
        async with ClusterClient.dial(plan, native_addresses) as cluster:
            return await asyncio.gather(*(ask(cluster, ids, NEW_TOKENS) for ids, _ in expected.values()))

    answers = run(go(), 100)
    for answer, (ids, _) in zip(answers, expected.values(), strict=True):
        tokens = [c.token for c in answer]
        logits = run_whole(manifest, model_dir, ids + tokens[:-1], NEW_TOKENS, "float16")
        assert tokens == logits.argmax(axis=1).tolist()


def test_the_answer_is_english_about_the_question(model_dir, expected):
    stream = Tokenizer(model_dir).stream()
    text = "".join(stream.feed(token) for token in expected["Why is the sky blue?"][1])
    assert "sky" in text and "blue" in text or "light" in text


def test_our_tokenizer_gives_the_ids_of_transformers(gguf, model_dir):
    theirs = transformers.AutoTokenizer.from_pretrained(model_dir)
    ours = Tokenizer(model_dir)
    for text in (*PROMPTS, LONG, "12345 é🐦\n\n  x = {'a': [1, 2]}", "<|im_start|>user\nhi<|im_end|>"):
        assert ours.encode(text) == theirs(text).input_ids
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    rendered = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ours.encode_chat(chat) == rendered


@pytest.fixture(scope="module")
def text_ids(model_dir) -> list[int]:
    return perplexity.text_ids(model_dir, perplexity.TEXT.read_text(), perplexity.TOKENS)


@pytest.fixture(scope="module")
def reference(model_dir, text_ids):
    """The logits of the split's weights without quantized activations."""
    return perplexity.reference_logits(Manifest.read(model_dir), model_dir, text_ids)


@pytest.mark.parametrize("encoding", ["int4", "int8"])
def test_integer_activations_cost_little_perplexity(model, model_dir, tmp_path, text_ids, reference, encoding):
    folder, manifest = model_dir, Manifest.read(model_dir)
    if encoding == "int8":  # the GGUF's weights are int4
        folder, manifest = tmp_path, make_split(model, tmp_path, "int8")
        reference = perplexity.reference_logits(manifest, folder, text_ids)
    assert perplexity.encoding_of(manifest, folder) == encoding
    ours = perplexity.perplexity(perplexity.native_logits(manifest, folder, text_ids), text_ids)
    theirs = perplexity.perplexity(reference, text_ids)
    assert 15 < theirs < 30  # English, and read in its order
    assert ours == pytest.approx(theirs, rel=perplexity.LIMITS[encoding])


def test_keys_and_values_in_8_bits_cost_little_beside_integer_activations(model_dir, text_ids, reference):
    manifest = Manifest.read(model_dir)
    half, eighth = (
        perplexity.divergence(reference, perplexity.native_logits(manifest, model_dir, text_ids, kv_dtype=kv_dtype))
        for kv_dtype in ("float16", "int8")
    )
    assert half[0] < 0.0035 and eighth[0] < 0.0042, "0.0029 and 0.0034"
    assert half[1] > 0.94 and eighth[1] > 0.94
