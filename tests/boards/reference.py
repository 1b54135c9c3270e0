"""What plain transformers answers, greedily, reading the built-in model's GGUF file itself; a program of its own."""

import json
import sys


def greedy(prompt: str, max_tokens: int) -> dict:
    """Token ids (the end token included, if it comes) and text of the answer to a chat with this one message."""
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
    return {"tokens": tokens, "text": text, "eos": model.config.eos_token_id}


if __name__ == "__main__":
    print(json.dumps(greedy(sys.argv[1], int(sys.argv[2]))))
