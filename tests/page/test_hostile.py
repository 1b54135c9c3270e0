"""HTML and scripts in answers, titles, boards and files are text; Markdown makes only the elements that it should."""

import pytest

from tests.page.browsing import answers, ask, boards, tab
from tests.page.states import STATE

ATTACKS = [
    "<script>window.pwned = 1</script>", "<img src=x onerror='window.pwned = 1'>", "<svg onload='window.pwned = 1'>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>", "</div></article><style>body{display:none}</style>",
    "[a](javascript:window.pwned=1)", "[a](  JaVaScRiPt:window.pwned=1)", "[a](data:text/html,<script>1</script>)",
    "![a](https://elsewhere.example/track.png)", "[a](vbscript:x)", "<javascript:alert(1)>", "&lt;b&gt;",
    "`<script>window.pwned = 1</script>`", "```html\n<script>window.pwned = 1</script>\n```",
    "```\"><script>window.pwned=1</script>\n```",
    "| <b onclick=x> | <script>x</script> |\n|---|---|\n| <img src=x> | b |",
    "# <b>x</b>", "- <img src=x onerror=window.pwned=1>", "> <script>window.pwned = 1</script>",
    "[<img src=x onerror=window.pwned=1>](https://example.org/\"onmouseover=\"window.pwned=1)",
]  # fmt: skip
ALLOWED = {"P", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "HR", "BR", "CODE", "PRE", "DIV", "SPAN", "A",
           "STRONG", "EM", "DEL", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "BUTTON", "SVG", "PATH"}  # fmt: skip


def rendered(page, text: str) -> str:
    """The HTML of the elements that a text of Markdown becomes."""
    return page.evaluate("""async (text) => {
        const { render } = await import("/page/files/markdown.js");
        const box = document.createElement("div");
        box.append(render(text));
        for (const head of box.querySelectorAll(".code-head")) head.remove();
        return box.innerHTML;
    }""", text)  # fmt: skip


@pytest.fixture(scope="module")
def page(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        page.wait_for_selector(".welcome")
        yield page


def test_an_answer_of_attacks_is_text(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        answers(page, "\n\n".join(ATTACKS), reasoning="<script>window.pwned = 1</script>")
        ask(page, ATTACKS[0])
        assert page.locator(".mine .plain").inner_text() == ATTACKS[0]
        shown = page.inner_text(".theirs .text")
        for attack in (ATTACKS[0], ATTACKS[1], ATTACKS[2], ATTACKS[4], "&lt;b&gt;"):
            assert attack in shown
        every = "[...document.querySelectorAll('#messages .text *')]"
        assert set(page.evaluate(f"{every}.map(e => e.tagName.toUpperCase())")) <= ALLOWED
        names = page.evaluate(f"{every}.flatMap(e => e.getAttributeNames())")
        assert not [name for name in names if name.startswith("on") or name in ("src", "style", "srcdoc")]
        targets = page.evaluate("[...document.querySelectorAll('#messages .text a')].map(a => a.href)")
        assert targets and all(target.startswith("https://e") for target in targets)
        assert page.evaluate("window.pwned") is None
        assert "<script>" in page.text_content(".think .plain")


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_each_attack_at_each_cut_of_its_stream(page, attack):
    """While an answer is written, its text ends anywhere."""
    tags = page.evaluate("""async (text) => {
        const { render } = await import("/page/files/markdown.js");
        const box = document.createElement("div");
        document.body.append(box);
        const tags = new Set();
        for (let end = 0; end <= text.length; end += 1) {
            box.replaceChildren(render(text.slice(0, end)));
            for (const e of box.querySelectorAll("*")) tags.add(e.tagName.toUpperCase());
        }
        box.remove();
        return [...tags];
    }""", attack)  # fmt: skip
    assert set(tags) <= ALLOWED and page.evaluate("window.pwned") is None


@pytest.mark.parametrize(
    ("text", "html"),
    [("a *b* **c** ***d*** ~~e~~ `f`", "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <del>e</del> "
      "<code>f</code></p>"),
     ("2 * 3 * 4 and snake_case_name and 5_000", "<p>2 * 3 * 4 and snake_case_name and 5_000</p>"),
     ("**open", "<p>**open</p>"), ("`open", "<p>`open</p>"), ("[open](http://a", "<p>[open](<a href=\"http://a/\" "
      "rel=\"noopener noreferrer\" target=\"_blank\">http://a</a></p>"),
     ("# A\n## B #\n####### C", "<h3>A</h3><h4>B</h4><p>####### C</p>"),
     ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
     ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
     ("1. a\n\n   more\n\n2. b", "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>"),
     ("1) a\n   ```\n   x\n   ```\n2) b", '<ol><li>a<div class="code"><pre tabindex="0" role="group" '
      'aria-label="Code"><code>x</code></pre></div></li><li>b</li></ol>'),
     ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
     ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"), ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
     ("```py\nx = '<b>'\n\n```\nafter", '<div class="code"><pre tabindex="0" role="group" aria-label="Code, py"><code>'
      "x = '&lt;b&gt;'\n</code></pre></div><p>after</p>"),
     ("a | b\n:-:|--:\n`x\\|y` | 2\n3", '<div class="table" tabindex="0" role="group" aria-label="Table"><table><thead>'
      '<tr><th class="middle">a</th><th class="end">b</th></tr></thead><tbody><tr><td class="middle"><code>x|y</code>'
      '</td><td class="end">2</td></tr></tbody></table></div><p>3</p>'),
     ("[a *b*](https://example.org/x_(y)) \\*c\\*", '<p><a href="https://example.org/x_(y)" rel="noopener noreferrer" '
      'target="_blank">a <em>b</em></a> *c*</p>'),
     ("see https://example.org/a_b.", '<p>see <a href="https://example.org/a_b" rel="noopener noreferrer" '
      'target="_blank">https://example.org/a_b</a>.</p>'),
     ("[x](/etc/passwd)", '<p><span title="/etc/passwd">x</span></p>'), ("", ""), ("\n \n", "")],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)  # fmt: skip
def test_markdown(page, text, html):
    assert rendered(page, text) == html


@pytest.mark.parametrize(
    "text",
    ["*" * 20_000, "[" * 20_000, "`a" * 10_000, "> " * 5_000, "- " * 5_000, "**a " * 8_000, "![](" * 8_000,
     "|" * 20_000 + "\n" + "|-" * 10_000, "_a" * 10_000, "http://" * 5_000,
     "\n".join("  " * i + "- a" for i in range(300))],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_no_text_keeps_the_browser_busy(page, text):
    took_ms = page.evaluate("""async (text) => {
        const { render } = await import("/page/files/markdown.js");
        const began = performance.now();
        render(text);
        return performance.now() - began;
    }""", text)  # fmt: skip
    assert took_ms < 2000


def test_hostile_boards_findings_and_files_are_text(browser, fake):
    evil = "<img src=x onerror='window.pwned = 1'>"
    state = {
        **STATE, "model": evil, "notes": [evil],
        "boards": [{**b, "board": evil, "state": evil, "kernels": evil, "path": evil, "serving": False}
                   for b in STATE["boards"]],
        "findings": [{"board": evil, "about": "shards", "what": f"damaged: {evil}", "todo": evil}],
        "news": [{"time_s": 1, "kind": "bad", "board": evil, "text": f"{evil} was lost"}],
    }  # fmt: skip
    with tab(browser, fake.base) as page:
        boards(page, state)
        page.goto("/#/boards")
        page.wait_for_selector(".card")
        assert page.inner_text(".card h3 >> nth=0") == evil
        assert f"damaged: {evil}" in page.inner_text(".findings")
        assert page.locator(".boards img").count() == 0 and page.evaluate("window.pwned") is None


def test_a_hostile_title_is_text(browser, fake):
    with tab(browser, fake.base) as page:
        page.goto("/")
        id_ = fake.post("/page/api/conversations", {}).json()["id"]
        fake.http.patch(f"/page/api/conversations/{id_}", json={"title": ATTACKS[1]})
        page.goto(f"/#/c/{id_}")
        page.reload()
        page.wait_for_selector("#list .here")
        assert page.inner_text("#title") == ATTACKS[1] == page.inner_text("#list .here .name")
        assert page.evaluate("window.pwned") is None
        fake.http.delete(f"/page/api/conversations/{id_}")
