"""Which tokens end an answer, for vocabularies of real models."""

import pytest

from edgellm.checkpoint.vocabulary.ends import end_token_ids

QWEN_CONTROL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN_CODE = {"<|fim_pad|>": 151662, "<|repo_name|>": 151663, "<|file_sep|>": 151664}
LLAMA_32 = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|eom_id|>": 128008, "<|eot_id|>": 128009}
SMOLLM2 = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<repo_name>": 3, "<reponame>": 4, "<file_sep>": 5}
PHI_35 = {"<unk>": 0, "<s>": 1, "<|endoftext|>": 32000, "<|assistant|>": 32001, "<|end|>": 32007, "<|user|>": 32010}
HARMONY = {"<|return|>": 3, "<|channel|>": 5, "<|end|>": 7, "<|call|>": 12}


@pytest.mark.parametrize(
    ("named", "control", "user_defined", "expected"),
    [
        pytest.param((151645,), QWEN_CONTROL, QWEN_CODE, (151645, 151643), id="qwen2.5"),
        # a converter calls whatever stands between <| and |> a control token
        pytest.param((151645,), QWEN_CONTROL | QWEN_CODE, {}, (151645, 151643), id="qwen2.5, as a GGUF has it"),
        pytest.param((128001,), LLAMA_32, {}, (128001, 128008, 128009), id="llama-3.2"),
        pytest.param((2,), SMOLLM2, {}, (2, 0, 4), id="smollm2"),
        # generation_config names <|assistant|> too; </s> is a plain word of this vocabulary
        pytest.param((32007, 32001, 32000), PHI_35, {"</s>": 2}, (32007, 32001, 32000), id="phi-3.5"),
        pytest.param((1, 106), {"<eos>": 1, "<end_of_turn>": 106}, {"</s>": 212}, (1, 106), id="gemma-3"),
        pytest.param((2,), {"<s>": 1, "</s>": 2}, {"<|im_end|>": 32000}, (2, 32000), id="a finetune of mistral"),
        pytest.param((3,), HARMONY, {}, (3, 12), id="gpt-oss: <|end|> ends a message only"),
        pytest.param((2,), {"<|end|>": 7, "<|flush|>": 8, "<|calls|>": 9}, {}, (2, 8, 9), id="solar open"),
        pytest.param((7, 7), {}, {}, (7,), id="named twice"),
        pytest.param((), {"<|user|>": 5}, {}, (), id="none"),
    ],
)
def test_ends_of_real_vocabularies(named, control, user_defined, expected):
    assert end_token_ids(named, control, user_defined) == expected
