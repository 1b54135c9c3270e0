"""The pictures of the page in docs/, of answers and boards that are made up: `make screenshots`."""

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from edgellm.conversations import Conversations, Message
from tests.page.browsing import boards, tab
from tests.page.states import STATE
from tests.server.serving import Serving

OUT = Path(__file__).parents[2] / "docs" / "page"
ASKED = "What does a Raspberry Pi need to stay cool?"
ANSWER = """A small board throttles at about **80 °C**. Three things help:

1. **A heat sink** on the processor, with thermal pad
2. **Moving air**: a slow 40 mm fan is enough
3. **Room** above the case

You can see what it measures yourself:

```sh
cat /sys/class/thermal/thermal_zone0/temp   # in thousandths of a degree
```
"""
SIZES = {"wide": {"width": 1160, "height": 720}, "phone": {"width": 390, "height": 780}}


def main() -> None:
    from playwright.sync_api import sync_playwright

    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        served = Serving(Path(folder), state=Path(folder) / "state")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            store = Conversations(Path(folder) / "state" / "conversations.db")
            for title in ("A packing list for the hills", "Why is bread brown?", "Names for a robot vacuum"):
                store.new("", title=title)
            told = {"tokens": 86, "tokens_per_s": 5.4, "first_token_s": 1.3, "cached_tokens": 0}
            said = [Message("user", ASKED), Message("assistant", ANSWER, "", "fake", "stop", told)]
            id_ = store.new("", messages=said).id
            store.close()
            for size, scheme in (("wide", "light"), ("wide", "dark"), ("phone", "light"), ("phone", "dark")):
                _shoot(browser, served.base, id_, size, scheme)
        finally:
            browser.close()
            served.stop()


def _shoot(browser, base: str, id_: str, size: str, scheme: str) -> None:
    options = {"viewport": SIZES[size], "color_scheme": scheme, "device_scale_factor": 1.5 if size == "phone" else 1}
    with tab(browser, base, **options) as page:
        boards(page, STATE)
        model = {"name": STATE["model"], "context": STATE["context"]}
        session = {"key": "", "signed_in": False, "history": True, "version": "", "models": [model]}
        page.route("**/page/api/session", lambda route: route.fulfill(status=200, json=session))
        page.goto(f"/#/c/{id_}")
        page.wait_for_selector(".stats")
        page.wait_for_selector("#list .here", state="attached")
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(0, 0)
        _save(page, f"chat-{size}-{scheme}")
        page.click("#open-side" if size == "phone" else "#to-boards")
        if size == "phone":
            page.click("#to-boards")
        page.wait_for_selector(".failure")  # the made-up stream has ended
        page.evaluate("""async (state) => {
            const { Boards } = await import("/page/files/boards.js");
            document.getElementById("boards").replaceChildren();
            new Boards().draw(state);
        }""", STATE)  # fmt: skip
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(300)
        _save(page, f"boards-{size}-{scheme}")


def _save(page, name: str) -> None:
    """Write a picture, in 128 colours, because the repository keeps it for ever."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
