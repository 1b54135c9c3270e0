"""Signing in with an API key, as a phone does: over plain HTTP, where browsers give scripts no clipboard."""

import pytest

from edgellm.server.keys import Keys
from tests.page.browsing import answers, ask, tab
from tests.server.serving import Serving


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed")
    key = Keys(folder / "api-keys.json").make("kitchen")
    keyed = Serving(folder, state=folder / "state", hosts=frozenset({"pi.lan"}))
    keyed.key, keyed.far = key, f"http://pi.lan:{keyed.port}"
    yield keyed
    keyed.stop()


def sign_in(page, key: str) -> None:
    page.goto("/")
    page.wait_for_selector("#sign-in-form")
    page.fill("#key", key)
    page.keyboard.press("Enter")


def test_a_key_signs_in_and_scripts_never_see_the_cookie(browser, keyed):
    with tab(browser, keyed.far, answers_may_fail=True) as page:
        sign_in(page, "edgellm-wrong")
        page.wait_for_selector("#sign-in-error >> text=not known")
        assert not page.is_visible("#app") and page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", keyed.key)
        page.keyboard.press("Enter")
        page.wait_for_selector(".welcome")
        assert page.evaluate("document.cookie") == "" and page.input_value("#key") == ""
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["value"] == keyed.key
        page.reload()
        page.wait_for_selector(".welcome")
        page.click("#open-options")
        assert "kitchen" in page.inner_text("#options")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("#sign-in-form")
        assert page.context.cookies() == []


def test_copy_works_without_a_secure_context(browser, keyed):
    code = "def f():\n    return '<b>'"
    with tab(browser, keyed.far, answers_may_fail=True) as page:
        sign_in(page, keyed.key)
        page.wait_for_selector(".welcome")
        assert page.evaluate("[window.isSecureContext, typeof navigator.clipboard]") == [False, "undefined"]
        answers(page, f"Here:\n\n```python\n{code}\n```\n\nDone.")
        ask(page, "Code, please.")
        for button, expected in (("Copy code", code), ("Copy answer", f"Here:\n\n```python\n{code}\n```\n\nDone.")):
            page.get_by_role("button", name=button).click()
            page.fill("#text", "")
            page.focus("#text")
            page.keyboard.press("Control+v")
            assert page.input_value("#text") == expected


def test_a_key_that_ends_while_the_page_is_open_asks_for_another(browser, keyed):
    with tab(browser, keyed.far, answers_may_fail=True) as page:
        sign_in(page, keyed.key)
        page.wait_for_selector(".welcome")
        page.context.clear_cookies()
        page.fill("#text", "hi")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sign-in-form")
        assert not page.is_visible("#app")
        page.fill("#key", keyed.key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#app")
        assert page.input_value("#text") == "hi", "nothing that was typed is lost"
