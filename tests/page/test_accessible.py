"""For everybody: axe finds nothing serious, all works by keyboard, nothing is cut off on a small phone."""

import pytest

from tests.page.browsing import answers, ask, boards, findings, tab, until
from tests.page.states import STATE

ANSWER = """## Adding numbers

Use `+`, or *this*:

```python
def add(a, b):
    return a + b  # a line that is far too long for a phone, so that it must be scrolled sideways to be read
```

1. **One**
2. Two
   - nested

| Board | Layers | ms a token |
|:------|:------:|-----------:|
| pi1 | 0–13 | 45.2 |

> See [the documentation](https://docs.python.org/3/).
"""
SIZES = {"wide": {"width": 1200, "height": 800}, "phone": {"width": 320, "height": 640}}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(browser, fake, size, scheme):
    phone = size == "phone"
    with tab(browser, fake.base, viewport=SIZES[size], color_scheme=scheme, has_touch=phone) as page:
        boards(page, STATE)
        answers(page, ANSWER, reasoning="First, I think.")

        def check(where: str) -> None:
            page.wait_for_timeout(250)  # what fades in has its colours then
            assert findings(page) == [], where
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
            assert page.evaluate("[...document.querySelectorAll('.messages, .boards')].every("
                                 "e => e.scrollWidth <= e.clientWidth + 1)"), where  # fmt: skip

        page.goto("/")
        page.wait_for_selector(".welcome")
        check("welcome")
        page.fill("#text", "How do I add numbers in Python?")
        page.click("#send")
        page.wait_for_selector(".stats")
        check("answer")
        page.click("#choose")
        check("options")
        page.keyboard.press("Escape")
        if phone:
            page.click("#open-side")
            check("list")
        page.click("#open-options")
        check("settings")
        page.keyboard.press("Escape")
        if phone:
            page.keyboard.press("Escape")
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        check("boards")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signing_in_and_errors_are_accessible(browser, fake, scheme):
    with tab(browser, fake.base, answers_may_fail=True, color_scheme=scheme) as page:
        refusal = {"error": {"message": "this needs an API key"}}
        page.route("**/page/api/session", lambda route: route.fulfill(status=401, json=refusal))
        page.goto("/")
        page.wait_for_selector("#sign-in-form")
        assert findings(page) == []
        page.unroute("**/page/api/session")
        lost = {"error": {"message": "boards are lost"}}
        page.route("**/page/api/answer", lambda route: route.fulfill(status=503, json=lost))
        page.reload()
        page.wait_for_selector(".welcome")
        page.fill("#text", "a")
        page.keyboard.press("Enter")
        page.wait_for_selector(".failure >> text=boards are lost")
        assert findings(page) == []


def test_everything_by_keyboard(browser, fake):
    with tab(browser, fake.base) as page:
        answers(page, ANSWER)
        page.goto("/")
        page.wait_for_selector(".welcome")
        until(page, "document.activeElement.id === 'text'")
        page.keyboard.type("first line")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("second line")
        page.keyboard.press("Enter")
        page.wait_for_selector(".stats")
        assert page.inner_text(".mine .plain") == "first line\nsecond line"
        until(page, "document.getElementById('said').textContent.startsWith('Answer: Adding numbers')")
        page.focus("#choose")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('options').open")
        page.keyboard.press("Escape")
        until(page, "document.activeElement.id === 'choose'")
        page.keyboard.press("Control+k")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.closest('.talk') !== null")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the menu of the conversation
        page.wait_for_selector("#menu")
        assert page.evaluate("document.activeElement.textContent") == "Rename"
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.textContent") == "Delete"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("More about")
        reached = set()
        page.evaluate("document.activeElement.blur()")
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"))
        assert {"Copy code", "Copy answer", "Answer again", "Edit message", "Table", "text", "search", "new",
                "open-options"} <= reached  # fmt: skip


def test_an_answer_is_announced_once_not_at_each_token(browser, fake):
    with tab(browser, fake.base) as page:
        answers(page, "word " * 300, pieces=5)
        page.goto("/")
        page.wait_for_selector(".welcome")
        page.evaluate("""() => {
            window.said = [];
            new MutationObserver(() => said.push(document.getElementById('said').textContent)).observe(
                document.getElementById('said'), { childList: true, characterData: true, subtree: true });
        }""")
        ask(page, "a")
        until(page, "document.getElementById('said').textContent.startsWith('Answer:')")
        said = page.evaluate("said")
        assert len(said) <= 3 and len(said[-1]) < 800 and said[-1].endswith("the rest is on the page")


def test_who_wants_no_motion_gets_none(browser, fake):
    with tab(browser, fake.base, reduced_motion="reduce", viewport=SIZES["phone"]) as page:
        page.goto("/")
        page.wait_for_selector(".welcome")
        assert page.evaluate("[getComputedStyle(document.getElementById('side')).transitionDuration,"
                             " getComputedStyle(document.getElementById('progress-done')).animationName]"
                             ) == ["0s", "none"]  # fmt: skip
