"""Chats in a browser: the first answer, what is kept, what is edited, stopped, searched and left out."""

import json
import re

from tests.cli.commands import answer_to
from tests.page.browsing import answer, ask, tab, until


def choose(page, **values: str) -> None:
    """Set options of the conversation."""
    page.click("#choose")
    for name, value in values.items():
        page.fill(f"#o-{name}", value)
    page.get_by_role("button", name="Done").click()


def titles(page) -> list[str]:
    return page.locator("#list .name").all_inner_texts()


def test_first_answer_reload_and_history_with_the_real_model(browser, real):
    with tab(browser, real.base) as page:
        page.goto("/")
        choose(page, temperature="0", max_tokens="24", system="You are a helpful assistant.")
        ask(page, "Why is the sky blue?")
        text = answer(page)
        assert len(text.split()) > 8 and "tokens/s" in page.inner_text(".stats")
        assert page.title() == "Why is the sky blue? · edgellm"
        ask(page, "And at sunset?")
        texts = page.locator(".theirs .text").all_inner_texts()
        assert texts[0] == text and len(texts) == 2
        assert "prompt tokens reused" in page.inner_text(".theirs:last-child .stats")
        page.reload()
        page.wait_for_selector(".stats")
        assert page.locator(".theirs .text").all_inner_texts() == texts
        assert "temperature 0" in page.inner_text("#choose")
        page.wait_for_selector("#list .name")
        assert titles(page) == ["Why is the sky blue?"]
        page.click("#new")
        page.wait_for_selector(".welcome")
        page.click("#list .name")
        page.wait_for_selector(".stats")
        assert page.locator(".theirs .text").all_inner_texts() == texts


def test_search_rename_export_and_delete(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        choose(page, temperature="0", max_tokens="6")
        ask(page, "zebra")
        page.click("#new")
        ask(page, "lion")
        assert titles(page)[:2] == ["lion", "zebra"]
        page.keyboard.press("Control+k")
        page.keyboard.type("zeb")
        page.wait_for_selector("#list mark")
        assert titles(page) == ["zebra"] and page.inner_text("#list mark") == "zeb"
        page.keyboard.press("Escape")
        until(page, "document.querySelectorAll('#list .name').length > 1")
        page.get_by_role("button", name="More about zebra").click()
        page.get_by_role("menuitem", name="Rename").click()
        page.fill("#prompted", "Stripes")
        page.keyboard.press("Enter")
        page.wait_for_selector("#list .name >> text=Stripes")
        page.get_by_role("button", name="More about Stripes").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name="Export as JSON").click()
        assert download.value.suggested_filename == "stripes.json"
        exported = json.loads(download.value.path().read_text())
        assert [m["content"] for m in exported["messages"]] == ["zebra", answer_to("zebra", 6)]
        page.get_by_role("button", name="More about Stripes").click()
        page.get_by_role("menuitem", name="Delete").click()
        page.get_by_role("button", name="Delete", exact=True).click()
        until(page, "![...document.querySelectorAll('#list .name')].some(n => n.textContent === 'Stripes')")
        assert page.locator(".mine").inner_text() == "lion", "the open one stays"


def test_answer_again_and_edit(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        choose(page, temperature="0", max_tokens="6")
        ask(page, "abc")
        first = answer(page)
        page.get_by_role("button", name="Answer again").click()
        until(page, "document.querySelectorAll('.theirs .stats').length === 1")
        assert answer(page) == first
        page.hover(".mine")
        page.get_by_role("button", name="Edit message").click()
        assert page.evaluate("document.activeElement.value") == "abc"
        page.keyboard.press("Escape")
        assert page.inner_text(".mine .plain") == "abc"
        page.fill("#text", "")
        page.focus("#text")
        page.keyboard.press("ArrowUp")
        page.keyboard.type("d")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mine .plain >> text=abcd")
        page.wait_for_selector(".theirs .stats")
        assert re.sub(r"\s", "", answer(page)) in re.sub(r"\s", "", answer_to("abcd", 6)) != ""
        page.reload()
        page.wait_for_selector(".stats")
        assert page.locator(".mine .plain").all_inner_texts() == ["abcd"]


def test_an_answer_is_stopped_by_key_and_by_button_and_its_beginning_kept(browser, fake):
    fake.cluster.pace.delay_s = 0.03
    try:
        with tab(browser, fake.base) as page:
            page.goto("/")
            choose(page, temperature="0", max_tokens="900")
            for stop in (lambda: page.keyboard.press("Escape"), lambda: page.click("#send")):
                page.fill("#text", "stop me")
                page.keyboard.press("Enter")
                until(page, "document.querySelector('.theirs:last-child .text')?.innerText.length > 5")
                assert page.get_attribute("#send", "aria-label") == "Stop"
                stop()
                page.wait_for_selector(".theirs:last-child .stats >> text=stopped")
                assert page.get_attribute("#send", "aria-label") == "Send"
                until(page, "document.activeElement === document.getElementById('text')")
            page.reload()
            page.wait_for_selector(".stats >> text=stopped")
            assert page.locator(".theirs").count() == 2
    finally:
        fake.cluster.pace.delay_s = 0.0


def test_an_answer_goes_on_while_another_conversation_is_shown(browser, fake):
    fake.cluster.pace.delay_s = 0.02
    try:
        with tab(browser, fake.base) as page:
            page.goto("/")
            choose(page, temperature="0", max_tokens="60")
            page.fill("#text", "goes on")
            page.keyboard.press("Enter")
            page.wait_for_selector(".theirs")
            here = page.url
            page.keyboard.press("Control+Shift+o")
            page.wait_for_selector(".welcome")
            page.goto(here)
            page.wait_for_selector(".stats")
            assert "stopped" not in page.inner_text(".stats")
    finally:
        fake.cluster.pace.delay_s = 0.0


def test_a_temporary_conversation_is_not_kept(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        choose(page, temperature="0", max_tokens="6")
        page.get_by_role("button", name="Don’t keep this conversation").click()
        assert "temporary" in page.inner_text(".welcome h2")
        ask(page, "secret")
        ask(page, "more")
        assert page.locator(".mine").count() == 2 and "secret" not in titles(page)
        page.click("#new")
        page.get_by_role("button", name="Leave").click()
        page.wait_for_selector(".welcome")
        page.reload()
        page.wait_for_selector(".welcome")
        assert "secret" not in titles(page)


def test_history_can_be_turned_off_in_the_settings(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        page.click("#open-options")
        page.get_by_role("switch", name="Keep new conversations").uncheck()
        page.get_by_role("button", name="Close").click()
        choose(page, temperature="0", max_tokens="6")
        ask(page, "unkept")
        page.reload()
        page.wait_for_selector(".welcome h2 >> text=temporary")
        assert "unkept" not in titles(page)


def test_a_refused_question_is_told_and_can_be_asked_again(browser, fake):
    with tab(browser, fake.base, answers_may_fail=True) as page:
        page.goto("/")
        page.fill("#text", "x" * 4000)  # the fake model's slots hold 3000
        page.keyboard.press("Enter")
        page.wait_for_selector(".failure")
        assert "4000 tokens" in page.inner_text(".failure")
        assert page.input_value("#text") == "x" * 4000, "nothing that was typed is lost"
        page.fill("#text", "short")
        assert page.get_attribute("#send", "aria-label") == "Send"


def test_the_progress_of_a_long_prompt_and_the_place_in_line_are_shown(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        # A stream that stays open after these events.
        page.evaluate("""() => {
            const real = window.fetch;
            window.fetch = (url, options) => !String(url).endsWith('/answer') ? real(url, options) : Promise.resolve(
                new Response(new ReadableStream({ start(c) { window.tell = (e) => c.enqueue(
                    new TextEncoder().encode(`data: ${JSON.stringify(e)}\\n\\n`)); } })));
        }""")
        page.fill("#text", "long")
        page.keyboard.press("Enter")
        until(page, "window.tell")
        page.evaluate("tell({kind: 'queued', position: 3, eta_s: 42})")
        page.wait_for_selector("#progress-text >> text=2 before you, about 42 s")
        until(page, "document.getElementById('said').textContent.startsWith('2 before you')")
        page.evaluate("tell({kind: 'progress', done: 300, total: 1200})")
        page.wait_for_selector("#progress-text >> text=Reading your prompt: 300 of 1200 tokens")
        assert page.evaluate("document.getElementById('progress-done').style.width") == "25%"
        page.evaluate("tell({kind: 'text', text: 'Now'})")
        page.wait_for_selector(".theirs >> text=Now")
        assert not page.is_visible("#progress")
