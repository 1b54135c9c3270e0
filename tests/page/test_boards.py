"""The boards in a browser: as they stand, and while one is killed."""

from tests.page.browsing import Real, ask, boards, events, findings, tab, until
from tests.page.states import STATE


def test_a_board_is_killed_while_somebody_watches(browser, tmp_path):
    real = Real(tmp_path)
    try:
        with tab(browser, real.base) as page:
            page.goto("/#/boards")
            page.wait_for_selector(".headline h2 >> text=2 boards answer as one")
            assert page.locator(".card h3").all_inner_texts() == page.locator(".stage-name").all_inner_texts()
            assert page.locator(".pill").all_inner_texts() == ["serving", "serving"]
            real.kill_agent("local1")
            page.wait_for_selector(".news .bad >> text=local1 was lost")
            until(page, "document.getElementById('said').textContent.includes('local1 was lost')")
            page.wait_for_selector(".headline h2 >> text=1 of 2 boards can’t serve")
            assert page.locator(".stage.down .stage-name").inner_text() == "local1"
            assert "local1" in page.inner_text(".findings")
            page.click("#new")
            page.wait_for_selector(".welcome")
            page.click("#choose")
            page.fill("#o-max_tokens", "8")
            page.get_by_role("button", name="Done").click()
            ask(page, "Why is the sky blue?")  # the other board takes all layers
            page.click("#to-boards")
            page.wait_for_selector(".headline h2 >> text=One board answers")
            assert page.locator(".stage-name").all_inner_texts() == ["local2"]
    finally:
        real.stop()


def test_everything_about_a_board_is_told(browser, fake):
    with tab(browser, fake.base) as page:
        boards(page, STATE)
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        assert page.inner_text(".headline h2") == "1 of 3 boards can’t serve"
        assert page.locator(".tile b").all_inner_texts() == ["5.4", "6.1", "8,192", "3/4"]
        assert page.locator(".stage").all_inner_texts() == ["pi1\n0–13", "pi2\n14–26", "pi3\n27–35"]
        second = page.locator(".card").nth(1).inner_text()
        for told in ("5.3 GB of 6.9 GB", "61 ms a token", "44 ms a token", "0.31 ms", "83 °C, throttled", "1000 Mb/s",
                     "3 days"):  # fmt: skip
            assert told in second
        assert "no answer within 4 s" in page.locator(".card").nth(2).inner_text()
        assert page.locator(".card").nth(3).locator(".pill").inner_text() == "spare"
        assert "Give it a heat sink" in page.inner_text(".findings")
        assert page.locator(".news li span").all_inner_texts() == ["pi3 was lost", "plan 7 is in use"]
        assert page.get_attribute("#to-boards", "aria-label") == "Boards: not all serve"


def test_a_server_that_goes_away_is_told_and_asked_again(browser, fake):
    with tab(browser, fake.base, answers_may_fail=True) as page:
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        page.route("**/page/api/boards/live", lambda route: route.abort())
        page.goto("/#/")
        page.goto("/#/boards")
        page.wait_for_selector(".failure >> text=can't be reached")
        assert page.locator(".card").count() == 2, "what was known stays"
        page.unroute("**/page/api/boards/live")
        page.wait_for_selector(".failure", state="detached")


def test_what_changes_is_changed_in_place(browser, fake):
    """Whoever reads a card, or has selected text there, isn't disturbed by the next number."""
    with tab(browser, fake.base) as page:
        states = [STATE, {**STATE, "tokens_per_s": 4.4}]
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        same = page.evaluate("""async (states) => {
            const { Boards } = await import("/page/files/boards.js");
            const view = new Boards();
            view.draw(states[0]);
            const find = (what) => document.querySelector(what);
            const card = find(".card"), tile = find(".tile b");
            view.draw(states[1]);
            return [card === find(".card"), tile === find(".tile b"), tile.textContent];
        }""", states)  # fmt: skip
        assert same == [True, True, "4.4"]


def test_with_several_models_one_is_chosen_whose_boards_are_shown(browser, fake):
    both = {**STATE, "models": ["qwen3-8b-q4_k_m", "phi3"], "standing": ["qwen3-8b-q4_k_m", "phi3"]}
    first = {**both, "boards": [
        {**STATE["boards"][0], "others": [{"model": "phi3", "start": 0, "end": 16, "ram_bytes": 1_900_000_000}]},
        {**STATE["boards"][1], "others": [],
         "loading": {"model": "phi3", "read_bytes": 300_000_000, "total_bytes": 1_200_000_000}},
    ]}  # fmt: skip
    other = {**both, "model": "phi3", "num_layers": 32, "boards": STATE["boards"][:1], "findings": []}
    with tab(browser, fake.base) as page:
        boards(page, first)
        asked = []

        def chosen(route):
            asked.append(route.request.url)
            route.fulfill(status=200, content_type="text/event-stream", body=events({"kind": "boards", **other}))

        page.route("**/page/api/boards/live?model=*", chosen)
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        options = page.locator("#boards-model option").all_inner_texts()
        assert options == ["qwen3-8b-q4_k_m – answers now", "phi3 – answers now"]
        assert page.input_value("#boards-model") == "qwen3-8b-q4_k_m"
        assert "phi3, layers 0–15, 1.9 GB" in page.locator(".card").nth(0).inner_text()
        assert "phi3, 300 MB of 1.2 GB" in page.locator(".card").nth(1).inner_text()
        assert not findings(page)
        page.get_by_label("Model", exact=True).select_option("phi3")
        page.wait_for_selector(".boards-in > .faint >> text=phi3 · 32 layers")
        assert asked[0].endswith("/page/api/boards/live?model=phi3") and page.input_value("#boards-model") == "phi3"


def test_with_one_model_there_is_nothing_to_choose(browser, fake):
    with tab(browser, fake.base) as page:
        boards(page, {**STATE, "models": ["qwen3-8b-q4_k_m"], "standing": []})
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        assert page.locator("#boards-model").count() == 0
