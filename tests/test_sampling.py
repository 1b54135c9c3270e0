"""How a model's authors want it sampled: generation_config.json as transformers' generate() reads it."""

import pytest

from edgellm.errors import UsageError
from edgellm.sampling import Sampling

CONFIGS = {
    "nothing": ({}, Sampling()),
    "ends only": ({"eos_token_id": [1, 2], "transformers_version": "4.40.0"}, Sampling()),
    "greedy": ({"do_sample": False}, Sampling()),
    "sampled without a word more": ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
    "Llama 3.2": ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, Sampling(0.6, top_p=0.9, top_k=50)),
    "Qwen2.5": (
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
        Sampling(0.7, top_p=0.8, top_k=20, repeat_penalty=1.1),
    ),
    "top-k turned off": ({"do_sample": True, "top_k": 0, "min_p": 0.05}, Sampling(1.0, min_p=0.05)),
    "top-k turned off otherwise": ({"do_sample": True, "top_k": -1}, Sampling(1.0)),
    "null is nothing": ({"do_sample": True, "temperature": None, "top_k": None}, Sampling(1.0, top_k=50)),
    "a penalty when greedy": ({"repetition_penalty": 1.2, "temperature": 0.6}, Sampling(repeat_penalty=1.2)),
    "no truth value": ({"do_sample": "yes", "temperature": 0.6}, Sampling()),
}


@pytest.mark.parametrize("content, expected", CONFIGS.values(), ids=CONFIGS)
def test_a_generation_config_is_read_as_transformers_does(content, expected):
    assert Sampling.from_generation_config(content) == expected


def test_values_of_a_greedy_config_wait_for_a_temperature():
    advised = Sampling.from_generation_config({"do_sample": False, "top_p": 0.9, "top_k": 30})
    assert (advised.temperature, advised.top_p, advised.top_k) == (0.0, 0.9, 30)


@pytest.mark.parametrize("key, value", [("temperature", "hot"), ("top_k", 1.5), ("top_p", 2), ("min_p", [1])])
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(UsageError, match="expected a"):
        Sampling.from_generation_config({"do_sample": True, key: value})
