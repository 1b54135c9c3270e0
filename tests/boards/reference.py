"""What one process answers, greedily: plain transformers, and native sections as agents have them; a program."""

import json
import sys


def transformers_answer(prompt: str, max_tokens: int) -> dict:
    """Token ids (the end token included, if it comes) and text of the answer to a chat with this one message, by plain
    transformers, reading the built-in model's GGUF file itself."""
    import torch
    import transformers

    from edgellm.checkpoint.builtin import fetch_builtin
    from edgellm.config import DEFAULT_MODEL

    gguf = fetch_builtin(DEFAULT_MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    tokens = out[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return {"tokens": tokens, "text": text, "ids": ids[0].tolist(), "eos": model.config.eos_token_id}


def native_answer(ids: list[int], max_tokens: int) -> dict:
    """The same by all layers in one native section, with neither agents nor a wire, a token at a time."""
    import numpy as np

    from edgellm.cli.models import builtin_model
    from edgellm.model.native.section import NativeSection, read_spec
    from edgellm.shards.manifest import Manifest
    from edgellm.text.tokenizer import Tokenizer

    folder = builtin_model()
    manifest = Manifest.read(folder)
    section = NativeSection(read_spec(manifest, folder)[0], manifest, folder, 0, manifest.num_layers)
    slot, x, position, tokens = section.new_slot(len(ids) + max_tokens, "float16"), np.array(ids), 0, []
    while len(tokens) < max_tokens:
        logits = section.forward(x, position, slot, position + len(x), 1)[0]
        position += len(x)
        tokens.append(int(logits.argmax()))
        x = np.array(tokens[-1:])
    stream = Tokenizer(folder).stream()
    return {"tokens": tokens, "text": "".join(stream.feed(t) for t in tokens)}


if __name__ == "__main__":
    plain = transformers_answer(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"transformers": plain, "native": native_answer(plain["ids"], int(sys.argv[2]))}))
