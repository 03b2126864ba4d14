"""The page in a real browser: click, wait, and look at what came.

It needs Gradio, Selenium, and Chromium with its driver; without one of them the tests are skipped, and say which is
missing. `HF_MASKDIFF_DEMO` names a folder with packages that are not installed (`pip install --target FOLDER gradio
selenium`), `HF_MASKDIFF_SCREENSHOTS` one in which a picture of every result is kept.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces" / "maskdiff-demo"
DIGITS, PLAYS = "tab0", "tab1"
PATIENCE = 120  # seconds: other tests run on the same processor
PATIENCE_WITH_A_CLICK = 40  # seconds until something must have come of it
PATIENCE_WITH_A_START = 300  # it imports everything, and opens the models
DESKTOP, NARROW = (1280, 1100), (390, 844)
# Packages that were put beside the environment come last, so that those of the environment are the ones that are used.
PROGRAM = "import sys; sys.path += sys.argv.pop(1).split(); from hf_maskdiff_cli import main; sys.exit(main())"
BESIDE = os.environ.get("HF_MASKDIFF_DEMO", "")
if BESIDE and BESIDE not in sys.path:
    sys.path.append(BESIDE)


def missing() -> list[str]:
    """What the tests need and this machine lacks, with what installs it."""
    sources = {"gradio": 'pip install -e ".[demo]"', "selenium": "pip install selenium"}
    packages = [f"{name} ({source})" for name, source in sources.items() if find_spec(name) is None]
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return packages + [f"{name} (the system's package)" for name in programs]


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")


# --- the server and the browser ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def served(command: list[str], folder: Path, port: int, log: Path) -> Iterator[str]:
    """The address of a page that a command serves, until the test is over."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), environment.get("PYTHONPATH")]))
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_WITH_A_START
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"nothing is served yet: {log.read_text()}"
            try:
                with urlopen(address, timeout=5):
                    break
            except (URLError, OSError):
                time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    names = ("maskgit-mnist", "mdlm-shakespeare", "mdlm-shakespeare-long")
    pipelines = [str(ROOT / "pipelines" / name) for name in names]
    command = [sys.executable, "-c", PROGRAM, BESIDE, "demo", "--device", "cpu", "--port", str(port), "--pipeline"]
    yield from served([*command, *pipelines], ROOT, port, tmp_path_factory.mktemp("demo") / "log")


class Page:
    """A page in a browser of its own.

    Args:
        address: of the page.
        size: of the window, in pixels; a narrow one is that of a telephone.
    """

    def __init__(self, address: str, size: tuple[int, int] = DESKTOP) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        arguments = "headless=new no-sandbox disable-dev-shm-usage hide-scrollbars use-angle=swiftshader"
        for argument in (*arguments.split(), "enable-unsafe-swiftshader", f"window-size={size[0]},{size[1]}"):
            options.add_argument(f"--{argument}")
        if size == NARROW:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 1}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.browser: Any = webdriver.Chrome(options=options, service=service)
        self.browser.get(address)
        self.until(lambda: self.element(f"#{DIGITS}-run").is_displayed())

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until a condition holds; the page may redraw what is looked at."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = [NoSuchElementException, StaleElementReferenceException]
        return WebDriverWait(self.browser, seconds, 0.05, ignored).until(lambda _: condition())

    def element(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """What an element says, also where it is out of sight; empty where there is none."""
        script = "const one = document.querySelector(arguments[0]); return one ? one.innerText : ''"
        return str(self.browser.execute_script(script, selector)).strip()

    def html(self, selector: str) -> str:
        script = "const one = document.querySelector(arguments[0]); return one ? one.innerHTML : ''"
        return str(self.browser.execute_script(script, selector))

    def click(
        self, selector: str, begun: Callable[[], Any] = lambda: True, before: Callable[[], Any] = lambda: None
    ) -> Any:
        """Click on an element once it stands still and nothing covers it, and wait for what comes of it.

        A page that is being redrawn may lose a click, so where nothing has come of it after a while, it is repeated.

        Args:
            selector: of the element.
            begun: whether something has come of the click; a second one must then do no harm.
            before: what is done before each click, such as typing: a page that is being redrawn may lose that as well.

        Returns:
            What `begun` returns.
        """
        from selenium.common.exceptions import TimeoutException

        for seconds in (PATIENCE_WITH_A_CLICK, PATIENCE_WITH_A_CLICK, PATIENCE):
            before()
            self.until(lambda: self._clicked(selector))
            try:
                return self.until(begun, seconds)
            except TimeoutException:
                if seconds == PATIENCE:
                    raise
        return None

    def _clicked(self, selector: str) -> bool:
        """Click on an element; False where it cannot be reached yet."""
        from selenium.common.exceptions import ElementClickInterceptedException, ElementNotInteractableException

        one = self.element(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
        place = one.rect
        time.sleep(0.1)
        if not (one.is_displayed() and one.is_enabled()) or one.rect != place:
            return False
        try:
            one.click()
        except (ElementClickInterceptedException, ElementNotInteractableException):
            return False
        return True

    def type(self, selector: str, value: object) -> None:
        """Put a value in place of what a field holds."""
        from selenium.webdriver.common.keys import Keys

        field = self.element(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(str(value))
        field.send_keys(Keys.TAB)

    def choose(self, selector: str, name: str) -> None:
        """Choose from a list by typing a name, as it filters."""
        from selenium.webdriver.common.keys import Keys

        field = self.element(f"{selector} input")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(name)
        field.send_keys(Keys.ENTER)
        self.until(lambda: self.element(f"{selector} input").get_attribute("value") == name)

    def tab(self, name: str) -> None:
        """Go to a tab; where the page is too narrow for all, some are in a menu."""

        def gone() -> bool:
            for place in ("button[role=tab]", ".overflow-dropdown button"):
                for button in self.browser.find_elements("css selector", place):
                    if button.text == name:
                        button.click()
                        return True
            menu = self.element(".overflow-menu > button")
            if menu.is_displayed() and not self.element(".overflow-dropdown").is_displayed():
                menu.click()
            return False

        self.until(gone)

    def panel(self, panel: str) -> str:
        """The HTML of a panel, without what Gradio puts beside it while something runs."""
        return self.html(f"#{panel} .md-panel")

    def said(self, message: str) -> str:
        """What went wrong, as a message says; empty where nothing did."""
        return self.text(f"#{message} .md-error")

    def numbers(self, panel: str) -> str:
        """Steps, passes and seconds in a panel's caption."""
        return self.text(f"#{panel} .md-numbers")

    def pictures(self, panel: str) -> list[Image.Image]:
        """What is drawn, and its heat map."""
        found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', self.panel(panel))
        return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]

    def run(self, tab: str, steps: int, button: str = "run") -> list[tuple[str, str]]:
        """Press the button, and wait for both samplers' last frames; returns the captions that were seen meanwhile."""
        before, seen = [self.panel(f"{tab}-{panel}") for panel in "ab"], []

        def begun() -> bool:
            return ended() or any(self.panel(f"{tab}-{panel}") != old for panel, old in zip("ab", before, strict=True))

        def ended() -> bool:
            found = (self.numbers(f"{tab}-a"), self.numbers(f"{tab}-b"))
            if not seen or seen[-1] != found:
                seen.append(found)
            ends = all(one.startswith(f"{steps} step") for one in found)
            return ends and all(self.panel(f"{tab}-{panel}") != old for panel, old in zip("ab", before, strict=True))

        self.click(f"#{tab}-{button}", begun)
        self.until(ended)
        return seen

    def keep(self, name: str) -> None:
        """Keep a picture of the whole page where somebody wants to look at it."""
        folder = os.environ.get("HF_MASKDIFF_SCREENSHOTS")
        if folder:
            height = self.browser.execute_script("return document.documentElement.scrollHeight")
            width = self.browser.execute_script("return window.innerWidth")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            time.sleep(0.5)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(folder, f"{name}.png")))


@pytest.fixture
def page(address: str) -> Iterator[Callable[..., Page]]:
    """A function that opens the page in another browser."""
    opened: list[Page] = []

    def open_page(size: tuple[int, int] = DESKTOP) -> Page:
        opened.append(Page(address, size))
        return opened[-1]

    yield open_page
    for one in opened:
        one.browser.quit()


NUMBERS = re.compile(r"(\d+) steps? · (\d+) pass(?:es)?(?: \+ (\d+) partial)? · (\d+\.\d\d) s")


def passes_and_seconds(caption: str) -> tuple[int, int, float]:
    found = NUMBERS.fullmatch(caption)
    assert found is not None, caption
    return int(found[2]), int(found[3] or 0), float(found[4])


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_filled_in_live_by_two_samplers(page: Callable[..., Page]) -> None:
    one = page()
    assert "Press “Draw”" in one.text(f"#{DIGITS}-a")
    one.type(f"#{DIGITS}-steps input[type=number]", 12)
    seen = one.run(DIGITS, 12)
    assert any(a.startswith("step ") for a, _ in seen), seen  # there was something to see in between
    results = [one.pictures(f"{DIGITS}-{panel}") for panel in "ab"]
    assert [len(pictures) for pictures in results] == [2, 2]
    (drawn_a, map_a), (drawn_b, map_b) = results
    assert drawn_a.size == drawn_b.size == (57, 57)  # four of 28 pixels
    assert min(map_a.size) > 400
    assert drawn_a.tobytes() != drawn_b.tobytes()
    assert map_a.tobytes() != map_b.tobytes()
    for panel in "ab":
        passes, partial, seconds = passes_and_seconds(one.numbers(f"{DIGITS}-{panel}"))
        assert (passes, partial) == (12, 0)
        assert seconds > 0
    one.keep("images")

    one.type(f"#{DIGITS}-seed input", 3)
    one.type(f"#{DIGITS}-steps input[type=number]", 6)
    one.type(f"#{DIGITS}-guidance input[type=number]", 2)
    one.type(f"#{DIGITS}-a-substeps input[type=number]", 2)
    one.run(DIGITS, 6)
    assert one.pictures(f"{DIGITS}-a")[0].tobytes() != drawn_a.tobytes()
    assert passes_and_seconds(one.numbers(f"{DIGITS}-a"))[:2] == (12, 12)  # two each a step
    assert passes_and_seconds(one.numbers(f"{DIGITS}-b"))[:2] == (12, 0)


def test_settings_that_a_sampler_lacks_are_switched_off_and_said(page: Callable[..., Page]) -> None:
    one = page()
    temperature, substeps = (f"#{DIGITS}-b-{name} input[type=number]" for name in ("temperature", "substeps"))
    assert one.element(temperature).is_enabled()
    one.choose(f"#{DIGITS}-b-sampler", "Halton")
    one.until(lambda: not one.element(temperature).is_enabled())
    assert "Halton has none: not used." in one.text(f"#{DIGITS}-b-temperature")
    assert one.element(substeps).is_enabled()
    one.choose(f"#{DIGITS}-a-sampler", "MaskGIT")
    one.until(lambda: not one.element(f"#{DIGITS}-a-substeps input[type=number]").is_enabled())
    assert one.element(f"#{DIGITS}-a-temperature input[type=number]").is_enabled()
    one.run(DIGITS, 8)
    assert "MaskGIT, 8 steps, choice temperature 6" in one.text(f"#{DIGITS}-a")
    assert "R is 1, without partial caching" in one.text(f"#{DIGITS}-a")
    assert "Halton has no choice temperature." in one.text(f"#{DIGITS}-b")
    one.choose(f"#{DIGITS}-b-sampler", "Moment")
    one.until(lambda: one.element(temperature).is_enabled())
    one.keep("switched_off")


def test_a_painted_part_is_drawn_anew_and_the_rest_stays(page: Callable[..., Page]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    if int(version("gradio").partition(".")[0]) < 6:
        assert "Editing by painting needs Gradio 6" in page().text("body")
        return

    one = page()
    message = f"{DIGITS}-edit-message"
    one.click(f"#{DIGITS}-edit button")
    one.click(f"#{DIGITS}-take")
    one.until(lambda: "there must be an image to paint on, got none" in one.said(message))
    one.click(f"#{DIGITS}-redraw")
    one.until(lambda: "an image must be there to paint on, got none" in one.said(message))
    one.run(DIGITS, 8)
    before = one.pictures(f"{DIGITS}-a")[0].convert("L").crop((0, 0, 28, 28))

    one.click(f"#{DIGITS}-take")
    one.until(lambda: one.said(message) == "")
    time.sleep(2)  # the editor draws the image, and has no sign by which that is seen
    one.click(f"#{DIGITS}-redraw")
    one.until(lambda: "must be painted over, got an empty painting" in one.said(message))
    assert one.said(message).count("\n") == 0

    canvas = one.element(f"#{DIGITS}-editor canvas")
    one.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    stroke = ActionChains(one.browser).move_to_element_with_offset(canvas, 40, -50).click_and_hold()
    for y in range(-40, 60, 10):
        stroke.move_to_element_with_offset(canvas, 40, y)
    stroke.release().perform()
    time.sleep(1)
    one.keep("painted")
    one.run(DIGITS, 8, button="redraw")
    one.until(lambda: one.said(message) == "")
    for panel in "ab":
        sheet, heat_map = one.pictures(f"{DIGITS}-{panel}")
        images = [sheet.convert("L").crop((x, y, x + 28, y + 28)) for x in (0, 29) for y in (0, 29)]
        for image in images:
            changed = {(x // 4, y // 4) for x in range(28) for y in range(28) if differ(image, before, (x, y))}
            assert changed
            assert {column for column, _ in changed} <= {3, 4, 5}  # a stroke to the right of the middle
        assert heat_map.convert("RGB").getpixel((5, 5)) == (205, 207, 212)  # the corner is given
    assert sheet.tobytes() != one.pictures(f"{DIGITS}-a")[0].tobytes()
    one.keep("edited")


def differ(image: Image.Image, other: Image.Image, place: tuple[int, int]) -> bool:
    return image.getpixel(place) != other.getpixel(place)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_filled_in_live_by_two_samplers(page: Callable[..., Page]) -> None:
    one = page()
    one.tab("mdlm-shakespeare")
    seen = one.run(PLAYS, 16)
    assert any(a.startswith("step ") for a, _ in seen), seen
    texts = [one.text(f"#{PLAYS}-{panel} .md-text") for panel in "ab"]
    assert all(text.startswith("ROMEO:") and len(text) > 60 and "▁" not in text for text in texts)
    assert texts[0] != texts[1]
    for panel in "ab":
        assert passes_and_seconds(one.numbers(f"{PLAYS}-{panel}"))[0] == 16
        colours = set(re.findall(r'title="(?:given|revealed in step \d+ of 16)"', one.html(f"#{PLAYS}-{panel}")))
        assert len(colours) == 17
    one.keep("text")

    one.type(f"#{PLAYS}-prompt textarea", "To be, or [MASK:5] question.")
    one.type(f"#{PLAYS}-steps input[type=number]", 5)
    one.run(PLAYS, 5)
    for panel in "ab":
        text = one.text(f"#{PLAYS}-{panel} .md-text")
        assert text.startswith("To be, or")
        assert text.endswith(" question.")


def test_a_prompt_that_cannot_be_read_is_one_line_on_the_page(page: Callable[..., Page]) -> None:
    one = page()
    one.tab("mdlm-shakespeare")
    expected = {
        "To be, or [MASK:x] question.": "a mask span must read",
        "KING " * 80: "a prompt must leave room|prompt and new tokens must fit",
    }
    for number, (prompt, message) in enumerate(expected.items()):
        said = one.click(
            f"#{PLAYS}-run",
            lambda: one.said(f"{PLAYS}-message"),
            before=lambda prompt=prompt: one.type(f"#{PLAYS}-prompt textarea", prompt),
        )
        assert re.match(message, said)
        assert said.count("\n") == 0
        assert prompt[:8] not in one.text(f"#{PLAYS}-a")  # where typing was lost, another prompt was written from
        one.type(f"#{PLAYS}-prompt textarea", "KING:")
        one.type(f"#{PLAYS}-steps input[type=number]", 5 + number)  # so that an old result is not taken for a new one
        one.run(PLAYS, 5 + number)
        one.until(lambda: one.said(f"{PLAYS}-message") == "")


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_two_users_at_once_get_what_each_gets_alone(page: Callable[..., Page]) -> None:
    users = [page(), page()]
    users[1].type(f"#{DIGITS}-seed input", 7)
    users[1].choose(f"#{DIGITS}-a-sampler", "MaskGIT")
    for one in users:
        one.type(f"#{DIGITS}-steps input[type=number]", 20)
    alone = []
    for one in users:
        one.run(DIGITS, 20)
        alone.append([picture.tobytes() for panel in "ab" for picture in one.pictures(f"{DIGITS}-{panel}")])
    assert alone[0] != alone[1]
    for one in users:
        one.type(f"#{DIGITS}-steps input[type=number]", 21)  # so that an old result is not taken for a new one
        one.run(DIGITS, 21)
        one.type(f"#{DIGITS}-steps input[type=number]", 20)
    for one in users:
        one.click(f"#{DIGITS}-run")
    for one, before in zip(users, alone, strict=True):
        one.until(lambda one=one: all(one.numbers(f"{DIGITS}-{panel}").startswith("20 steps") for panel in "ab"))
        assert [p.tobytes() for panel in "ab" for p in one.pictures(f"{DIGITS}-{panel}")] == before


@pytest.mark.exhaustive
def test_a_run_is_stopped(page: Callable[..., Page]) -> None:
    one = page()
    one.type(f"#{DIGITS}-steps input[type=number]", 49)
    one.click(f"#{DIGITS}-run")
    one.until(lambda: one.numbers(f"{DIGITS}-a").startswith("step "))
    one.click(f"#{DIGITS}-stop")
    time.sleep(1.5)
    stopped = one.numbers(f"{DIGITS}-a")
    time.sleep(1.5)
    assert one.numbers(f"{DIGITS}-a") == stopped
    assert stopped.startswith("step ")
    one.type(f"#{DIGITS}-steps input[type=number]", 8)
    one.run(DIGITS, 8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [DESKTOP, NARROW], ids=["desktop", "narrow"])
def test_nothing_is_cut_off(size: tuple[int, int], page: Callable[..., Page]) -> None:
    one = page(size)
    for tab, name, steps in ((DIGITS, "maskgit-mnist", 8), (PLAYS, "mdlm-shakespeare", 16)):
        one.tab(name)
        one.run(tab, steps)
        width = one.browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= one.browser.execute_script("return document.documentElement.clientWidth")
        boxes = [one.element(f"#{tab}-{panel} .md-panel").rect for panel in "ab"]
        side_by_side = boxes[0]["y"] == boxes[1]["y"]
        assert side_by_side is (size == DESKTOP)
        for box, panel in zip(boxes, "ab", strict=True):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size[0]
            script = "const one = document.querySelector(arguments[0]); return one.scrollWidth - one.clientWidth"
            assert one.browser.execute_script(script, f"#{tab}-{panel} .md-panel") <= 0
        one.keep(f"{'desktop' if size == DESKTOP else 'narrow'}_{name}")


@pytest.mark.exhaustive
def test_the_space_is_the_same_page(tmp_path: Path) -> None:
    """Its folder with the pipelines beside `app.py`, as the Hub runs it."""
    shutil.copytree(SPACE, tmp_path / "space")
    shutil.copytree(ROOT / "pipelines" / "maskgit-mnist", tmp_path / "space" / "pipelines" / "maskgit-mnist")
    program = "import runpy, sys; sys.path += sys.argv[1].split(); runpy.run_path('app.py', run_name='__main__')"
    for address in served([sys.executable, "-c", program, BESIDE], tmp_path / "space", free_port(), tmp_path / "log"):
        one = Page(address)
        try:
            assert [tab.text for tab in one.browser.find_elements("css selector", "button[role=tab]")] == [
                "maskgit-mnist"
            ]
            one.run(DIGITS, 8)
            assert len(one.pictures(f"{DIGITS}-a")) == 2
        finally:
            one.browser.quit()
