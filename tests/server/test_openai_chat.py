"""/v1/chat/completions as clients see it."""

import pytest

from edgellm.manager.session import Session
from tests.cli.commands import answer_to
from tests.server.serving import user

CHAT = "/v1/chat/completions"


def test_a_chat_is_answered_at_once(served):
    told = served.chat("Why?", max_tokens=20, seed=1).json()
    assert told["object"] == "chat.completion" and told["id"].startswith("chatcmpl-") and told["model"] == "fake"
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer_to("Why?", 20)}
    assert (choice["index"], choice["finish_reason"]) == (0, "length") and "logprobs" not in choice
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 20, 24)


def test_a_stream_is_the_same_answer_whose_end_comes_alone(served):
    *chunks, done = served.events(CHAT, {"messages": user("Why?"), "max_tokens": 20})
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == answer_to("Why?", 20)
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert {c["choices"][0]["finish_reason"] for c in chunks[:-1]} == {None}
    assert not any(value is None for c in chunks for value in c["choices"][0]["delta"].values())
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)


def test_usage_comes_in_a_chunk_of_its_own_if_asked_and_tells_what_was_held(served):
    body = {"messages": user("A prompt that is asked twice"), "max_tokens": 3}
    body["stream_options"] = {"include_usage": True}
    first, second = (served.events(CHAT, body)[-2] for _ in "ab")
    assert first["choices"] == [] and first["usage"]["total_tokens"] == 28 + 3
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 20


def test_stop_texts_end_an_answer_before_them(served):
    whole = answer_to("Why?", 60)
    told = served.chat("Why?", max_tokens=60, stop=[whole[20:22], "never"]).json()["choices"][0]
    assert (told["message"]["content"], told["finish_reason"]) == (whole[: whole.index(whole[20:22])], "stop")
    assert served.chat("Why?", max_tokens=60, stop=whole[20:22]).json()["choices"][0] == told


def test_several_answers_differ_by_their_seeds_and_the_prompt_counts_once(served):
    body = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 12}
    told = served.chat("Why?", **body).json()
    texts = [c["message"]["content"] for c in told["choices"]]
    assert [c["index"] for c in told["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (4, 36)
    alone = served.chat("Why?", temperature=1.5, seed=8, max_tokens=12).json()["choices"][0]
    assert texts[1] == alone["message"]["content"]
    streamed = ["", "", ""]
    for chunk in served.events(CHAT, {"messages": user("Why?"), **body})[:-1]:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


def test_logprobs_name_each_token_and_the_likeliest_in_its_place(served):
    told = served.chat("Why?", max_tokens=4, logprobs=True, top_logprobs=2).json()["choices"][0]
    tokens = told["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens) == told["message"]["content"] == answer_to("Why?", 4)
    assert all(t["logprob"] <= 0 and bytes(t["bytes"]).decode() == t["token"] for t in tokens)
    assert [len(t["top_logprobs"]) for t in tokens] == [2] * 4
    assert [t["top_logprobs"][0]["token"] for t in tokens] == [t["token"] for t in tokens]
    chunks = served.events(CHAT, {"messages": user("Why?"), "max_tokens": 4, "logprobs": True})[:-1]
    streamed = [t for c in chunks for t in c["choices"][0].get("logprobs", {}).get("content", [])]
    assert [t["token"] for t in streamed] == [t["token"] for t in tokens] and streamed[0]["top_logprobs"] == []


def test_penalties_and_biases_reach_the_boards(served):
    plain = answer_to("Why?", 20)
    biased = served.chat("Why?", max_tokens=20, logit_bias={"5": 100}).json()["choices"][0]["message"]["content"]
    assert biased == "&" * 20 != plain
    for extra in ({"top_k": 3}, {"min_p": 0.1}, {"repeat_penalty": 1.1}, {"presence_penalty": 1}, {"top_p": 0.5},
                  {"frequency_penalty": 1}, {"max_completion_tokens": 3}, {"reasoning_effort": "low"},
                  {"chat_template_kwargs": {"enable_thinking": False}}, {"unknown": {"a": 1}}, {"top_k": -1},
                  {"seed": -1}, {"user": "me"}, {"store": True}, {"stop": None, "tools": None}):  # fmt: skip
        assert served.chat("Why?", max_tokens=5, **extra).status_code == 200, extra


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "expected float"),
        ({"temperature": 101}, "temperature", "is 101"),
        ({"top_p": -1}, "top_p", "is -1"),
        ({"seed": 1 << 70}, "seed", "expected a whole number"),
        ({"max_tokens": 0}, "max_tokens", "is 0, expected at least 1"),
        ({"max_completion_tokens": -5}, "max_completion_tokens", "is -5"),
        ({"n": 0}, "n", "expected 1 to 16"),
        ({"n": 1000}, "n", "is 1000"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "expected the id of a token"),
        ({"logit_bias": {"1": 1000}}, "logit_bias", "is 1000"),
        ({"stop": [1]}, "stop[0]", "expected str"),
        ({"stop": ["a"] * 17}, "stop", "length <= 16"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "is 21, expected 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "length >= 1"),
        ({"tools": [{"type": "web_search", "function": {"name": "a"}}]}, "tools[0].type", "expected 'function'"),
        ({"tools": [{"function": {"name": "a"}}] * 2}, "tools[1].function.name", "names two tools"),
        ({"tools": [{"function": {"name": f"a{i}"}} for i in range(129)]}, "tools", "129 tools, at most 128"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"function": {"name": "a"}}}, "tool_choice", "none of the tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "is 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format",
         "can't be compiled"),
        ({"response_format": {"type": "regex", "regex": "(("}}, "response_format", "can't be compiled"),
        ({"response_format": {"type": "regex", "regex": "x" * 50_000}}, "response_format.regex", "at most 49152"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "is 'huge'"),
        ({"keep_alive": "soon"}, "keep_alive", "is 'soon'"),
        ({"model": "gpt-4"}, "model", "no model 'gpt-4'. There are: fake."),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "is 'king'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        ({"messages": user("a") * 2001}, "messages", "2001 messages, at most 2000"),
        ({"messages": user("a" * 4000)}, "messages", "the prompt has 4000 tokens"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_makes_no_sense_is_refused_with_the_fields_name_before_a_board_works(
    served, monkeypatch, fields, param, words, stream
):
    monkeypatch.setattr(Session, "generate", None)  # what asks the boards
    response = served.chat("Why?", **({"stream": stream} | fields)) if "messages" not in fields else served.post(
        CHAT, {"stream": stream, **fields})  # fmt: skip
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[1]", "Expected object"),
     (b"null", "Expected object"), (b"[" * 100_000, "Expected object"),
     (b'{"messages": ' + b"[" * 100_000, "expected object"),
     (b'{"messages": [{"role": "user", "content": "a"}], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeply")],
    ids=lambda v: str(v)[:20],
)  # fmt: skip
def test_what_is_no_json_is_refused(served, body, words):
    response = served.post(CHAT, body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_parts_of_a_message_are_joined_and_a_long_conversation_is_one_prompt(served):
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    told = served.post(CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 9}).json()
    assert told["choices"][0]["message"]["content"] == answer_to("Wh\ny?", 9)
    chat = [{"role": "system", "content": "W"}, {"role": "assistant", "content": None, "refusal": None},
            {"role": "developer", "content": "h"}, {"role": "user", "name": "me", "content": "y?"}]  # fmt: skip
    told = served.post(CHAT, {"messages": chat, "max_tokens": 9}).json()
    assert told["choices"][0]["message"]["content"] == answer_to("Why?", 9)


@pytest.mark.parametrize("path", ["/v1/v1/chat/completions", "/chat/completions", "//v1/chat/completions/",
                                  "/api/v1/chat/completions"])  # fmt: skip
def test_paths_of_a_wrong_base_url_are_answered(served, path):
    told = served.post(path, {"messages": user("Why?"), "max_tokens": 5}).json()
    assert told["choices"][0]["message"]["content"] == answer_to("Why?", 5)


def test_models_are_listed(served):
    listed = served.http.get("/v1/models").json()
    assert listed["object"] == "list" and [m["id"] for m in listed["data"]] == ["fake"]
    assert served.http.get("/models").json() == served.http.get("/v1/v1/models").json() == listed
    assert served.http.get("/v1/models/fake").json() == listed["data"][0]
    missing = served.http.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert served.chat("Why?", max_tokens=2, model="FAKE:latest").json()["model"] == "fake"


def test_other_paths_and_methods_are_refused_in_the_apis_shape(served):
    assert served.http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    wrong = served.http.get(CHAT)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert served.http.get("/api/nothing").json() == {"error": "there is nothing at /api/nothing"}
