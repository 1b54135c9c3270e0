"""Chat templates as transformers renders them, and what a hostile one can't do."""

import gc
import threading

import psutil
import pytest

from edgellm.errors import ManifestError, UsageError
from edgellm.text.chat_template import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be brief é."},
    {"role": "user", "content": "Hi?", "data": {"b": [1, 2.5, None], "a": "<é>"}},
]
VALUES = {"messages": CHAT, "tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>"}

SAME = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}|{% endgeneration %}\n{% endfor %}",
    "generation with dashes": "{%- for m in [1, 2] -%}{%- generation -%} {{ m }} {%- endgeneration -%}{% endfor %}",
    "scopes of generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "a loop in generation": "{% for m in [1] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "tojson in ASCII": "{{ messages[1] | tojson(ensure_ascii=True) }}",
    "tojson without ASCII": "{{ messages[1] | tojson(ensure_ascii=False) }}",
    "tojson indented": "{{ messages[1] | tojson(indent=2) }}",
    "tojson's separators": "{{ messages[1] | tojson(separators=(',', ':')) }}",
    "tojson sorted": "{{ messages[1] | tojson(sort_keys=True) }}",
    "tojson by position": "{{ messages[1] | tojson(True, 4) }}",
    "tojson of a text": "{{ '</script>&\\'' | tojson }}",
    "no tools": "{{ tools is none }} {{ documents is none }} {% if tools %}x{% endif %}{{ tools is defined }}",
    "loop controls": "{% for i in [1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% break %}{% endfor %}",
    "white space": "a\n  {% if true %}\n  b  \n  {% endif %}\n{# c #}\nd\n",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "macros": "{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(2, b=3) }}",
    "dict": "{{ dict(a=1) }} {{ dict.fromkeys(['a'], 2) }} {{ messages[1].data.items() | list }}",
    "undefined": "[{{ nobody }}]{{ nobody is defined }}{{ messages[0].nothing is defined }}{{ messages[0].get('x') }}",
    "methods": "{{ ' a b '.strip().split(' ')[-1] }}{{ 'Be'.startswith('B') }}{{ messages[::-1][0].role }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ 'x' | upper | indent }}{{ messages | length }}",
    "tests": "{{ messages is mapping }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "a date's length": "{{ strftime_now('%Y-%m-%d') | length }}",
    "bos": "{{ bos_token }}{% if add_generation_prompt %}!{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_a_template_renders_as_in_transformers(source):
    from transformers.utils.chat_template_utils import render_jinja_template

    rest = {k: v for k, v in VALUES.items() if k not in ("messages", "tools", "documents")}
    (expected,), _ = render_jinja_template([CHAT], chat_template=source, **rest)
    assert ChatTemplate(source).render(VALUES) == expected


def test_what_generation_marks_is_rendered():
    """The right value itself, for the tag that refused every question of SmolLM3's kin."""
    source = (
        '{%- for message in messages -%}{%- if message.role == "user" -%}{{ "<u>" + message.content }}'
        '{%- elif message.role == "assistant" -%}{% generation %}{{ "<a>" + message.content }}{% endgeneration %}'
        '{%- endif -%}{%- endfor -%}{{ "<a>" }}'
    )
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
    assert ChatTemplate(source).render({"messages": chat}) == "<u>hi<a>ho<u>?<a>"


BROKEN = {
    "a type": ("{{ tools | length }}", "TypeError: object of type 'NoneType' has no len"),
    "an iteration": ("{% for t in tools %}{{ t }}{% endfor %}", "TypeError: 'NoneType' object is not iterable"),
    "an index": ("{{ messages[9].content }}", "UndefinedError"),
    "a key": ("{{ messages[0].content.nothing.more }}", "UndefinedError"),
    "a division": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "a value": ("{{ 'x' | int(base=99) + '1' }}", "TypeError"),
    "syntax": ("{% if", "TemplateSyntaxError"),
    "an unknown tag": ("{% generate %}", "TemplateSyntaxError"),
    "an unknown filter": ("{{ 1 | nothing }}", "TemplateAssertionError"),
    "another file": ("{% include '/etc/passwd' %}", "no loader"),
    "Python's insides": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "a change of the messages": ("{{ messages.append(1) }}", "SecurityError"),
    "a macro of itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a loop of itself": ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "RecursionError"),
    "depth": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError|ended"),
}  # fmt: skip


@pytest.mark.parametrize("source, words", BROKEN.values(), ids=BROKEN)
def test_whatever_a_template_raises_is_one_sentence(source, words):
    with pytest.raises(ManifestError, match=words) as caught:
        ChatTemplate(source, "models/x").render(VALUES)
    text = str(caught.value)
    assert text.startswith("the chat template of models/x fails: ") and "\n" not in text and len(text) < 450
    assert text.endswith(". Mend it, or ask with --raw.")


def test_a_template_that_refuses_is_the_users_matter():
    template = ChatTemplate("{{ raise_exception('System role\n not supported!') }}")
    with pytest.raises(UsageError, match="refuses this prompt: System role not supported!. Try it without --system"):
        template.render(VALUES)


LARGE = {
    "a repeated text": "{{ 'x' * 10**10 }}",
    "a repeated list": "{{ [1] * 10**9 }}",
    "a width": "{{ 'a'.ljust(10**10) }}",
    "a filter's width": "{{ 'a' | center(10**10) }}",
    "% formatting": "{{ '%10000000000d' % 1 }}",
    "the format filter": "{{ '%10000000000d' | format(1) }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "replacing": "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
    "joining": "{{ (('a' * 1000000) | list) | join('b' * 1000) }}",
    "indents": "{{ messages | tojson(indent=10**9) }}",
    "a batch": "{{ ['a'] | batch(10**10, 'x') | list | length }}",
    "pieces": "{% for i in range(99999) %}{% for j in range(99) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("source", LARGE.values(), ids=LARGE)
def test_a_template_that_grows_beyond_64_mb_is_stopped(source):
    with pytest.raises(ManifestError, match="fails: it (needs more than 64 MB|doesn't end within 2 s)"):
        ChatTemplate(source).render(VALUES)


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "one number": "{{ n ** (n ** n) }}",
    "one number that Jinja computes when it compiles": "{{ 9 ** (9 ** 9) }}",
    "a number's digits": "{% for i in range(9999) %}{{ (n ** 99999) % 10 }}{% endfor %}",
    "words": "{{ lipsum(n=100000) | length }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_stopped_also_within_one_operation(source, monkeypatch):
    monkeypatch.setattr("edgellm.text.chat_template.CPU_S", 0.2)
    with pytest.raises(ManifestError, match=r"fails: it doesn't end within 0.2 s|fails: it needs more than 64 MB"):
        ChatTemplate(source).render({**VALUES, "n": 9})


def test_a_range_too_long_is_refused_at_once():
    with pytest.raises(ManifestError, match="OverflowError: Range too big"):
        ChatTemplate("{% for i in range(10**9) %}{% endfor %}").render(VALUES)


def test_a_long_honest_chat_is_not_too_large():
    text = "é🐦" * 1_000_000
    assert ChatTemplate("{{ messages[0].content | trim }}").render({"messages": [{"content": text}]}) == text


def test_a_template_works_again_after_it_was_stopped_in_any_thread(monkeypatch):
    monkeypatch.setattr("edgellm.text.chat_template.CPU_S", 0.2)
    template = ChatTemplate("{% if n %}{{ n ** (n ** n) }}{% endif %}{{ x }}")
    rendered = []

    def ask(i):
        if i % 3 == 0:
            with pytest.raises(ManifestError):
                template.render({"n": 9, "x": i})
        rendered.append((i, template.render({"x": i})))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(rendered) == [(i, str(i)) for i in range(6)]


def test_one_process_serves_all_chats_and_ends_with_its_template():
    before = set(psutil.Process().children())
    template = ChatTemplate("{{ x }}")
    assert [template.render({"x": i}) for i in range(3)] == ["0", "1", "2"]
    (worker,) = set(psutil.Process().children()) - before
    del template
    gc.collect()
    assert not worker.is_running()


def test_a_process_that_was_killed_is_started_again():
    template = ChatTemplate("{{ x }}")
    template.render({"x": 1})
    template._process.kill()
    template._process.wait()
    assert template.render({"x": 2}) == "2"
