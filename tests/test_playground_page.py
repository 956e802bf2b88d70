"""The playground in a real headless browser: needs requirements-playground.txt, selenium, chromium and its driver.

apt-get install -y chromium chromium-driver && pip install selenium
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from algorithms.dipole import DIPOLE, DIPOLEConfig
from harness.algorithms import ROOT
from harness.config import load_settings
from harness.graphics import drawing_error
from harness.run_folder import run_path
from harness.train import train_run

pytest.importorskip("nicegui", reason="needs nicegui: pip install -r requirements-playground.txt")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs a browser: apt-get install -y chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,1000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PORT = 8191
PATIENCE = 600  # seconds until something that must happen has happened; drawing is slow on a busy machine
CONTROL_C = 130  # exit code


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The quick start, cut to a minute."""
    folder = tmp_path_factory.mktemp("playground")
    changes = {
        **{"data_dir": str(folder / "data"), "run_dir": str(folder / "runs"), "device": "cpu", "sweep": ()},
        **{"collect_episodes": 4, "offline_steps": 50, "eval_episodes": 1},
    }
    settings = load_settings(DIPOLEConfig, changes)
    train_run(DIPOLE, settings.run, settings.config)
    return run_path(settings.run)


@pytest.fixture
def server(run_dir, tmp_path):
    """The command in a process group of its own, as in a terminal; it has printed its address."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYTEST_CURRENT_TEST")
    }
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-m", "harness.playground", str(run_dir), "--no-browser", "--port", str(PORT)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True, text=True
        )
    process.log = tmp_path / "log"
    try:
        until(lambda: f"http://127.0.0.1:{PORT}/" in process.log.read_text() or process.poll() is not None)
        assert process.poll() is None, process.log.read_text()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(is_over):
    started = time.monotonic()
    while not (answer := is_over()):
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.2)
    return answer


class Page:
    """The page by the names that its elements have for tests."""

    def __init__(self, browser):
        self.browser = browser

    def find(self, name, inside=""):
        found = self.browser.find_elements(By.CSS_SELECTOR, f"[data-testid={name}] {inside}")
        return found[0] if found else None

    def text(self, name):
        """What an element shows now, "" where there is none; the page replaces elements while it is read."""
        script = "const e = document.querySelector(`[data-testid=${arguments[0]}]`); return e ? e.innerText : ''"
        return self.browser.execute_script(script, name)

    def write(self, name, text):
        field = self.find(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def choose(self, name, text):
        buttons = self.browser.find_elements(By.CSS_SELECTOR, f"[data-testid={name}] button")
        next(button for button in buttons if button.text == text).click()

    def press_run(self):
        until(self.find("run").is_enabled)
        self.find("run").click()

    def source(self):
        """Of the video, once the browser has decoded some of it; None before."""
        script = """const v = document.querySelector("video[data-testid=picture]");
                    return v && v.readyState >= 2 && v.videoWidth > 0 ? v.currentSrc : null"""
        return self.browser.execute_script(script)


def hosts(browser):
    """(scheme, host) of everything that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    sockets = [message["params"]["url"] for message in messages if message["method"] == "Network.webSocketCreated"]
    addresses = [urlsplit(url) for url in [*(each["request"]["url"] for each in asked), *sockets]]
    return {(address.scheme, address.netloc) for address in addresses}


def test_moving_greediness_changes_score_video_curve_and_table(server, browser):
    browser.get(f"http://127.0.0.1:{PORT}/")
    page = Page(browser)
    until(lambda: page.find("run"))
    assert page.text("status") == "choose a setting and press Run"
    page.write("episodes", "1")
    page.choose("num_candidates", "1")
    draws = drawing_error("egl") is None or drawing_error("osmesa") is None
    seen = []
    for share in (0.1, 0.4):  # of the slider's width, from its middle, to the right: greediness 2 and 3.5
        slider = page.find("greediness_slider")
        ActionChains(browser).move_to_element_with_offset(
            slider, int(share * slider.size["width"]), 0
        ).click().perform()
        until(lambda: float(page.find("greediness").get_attribute("value")) > 1 + 5 * len(seen) / 4)
        page.press_run()
        presses = str(len(seen) + 1)
        until(lambda presses=presses: page.text("table").count("1000000") == int(presses))
        if draws:
            until(lambda: page.source() and page.source() not in [source for _, source, _ in seen])
            assert "the episode with seed 1000000: return" in page.text("drawn_score")
        else:
            assert "cannot draw here" in page.text("no_pictures")
        until(lambda: page.text("status") == "ready")
        seen.append((page.text("score"), page.source(), page.find("curve").get_attribute("src")))
    (first_score, _, first_curve), (second_score, _, second_curve) = seen
    assert float(first_score) != float(second_score) and first_curve != second_curve
    assert "against greediness" in page.text("change") and "num_candidates 1," in page.text("change")

    page.write("greediness", "-3")
    page.press_run()
    until(lambda: page.text("error"))
    refusal = "greediness is -3; it starts at -1, the negative policy alone"
    assert page.text("error") == f"act options: {refusal}"
    assert page.text("table").count("1000000") == 2

    assert {host for scheme, host in hosts(browser) if scheme in ("http", "https", "ws", "wss")} == {
        f"127.0.0.1:{PORT}"
    }
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_control_c_ends_the_command_while_it_runs_with_all_that_it_left(server, browser, tmp_path):
    browser.get(f"http://127.0.0.1:{PORT}/")
    page = Page(browser)
    until(lambda: page.find("run"))
    page.press_run()
    until(lambda: "steps" in page.text("status"))
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait(PATIENCE) == CONTROL_C
    log = server.log.read_text()
    assert "Traceback" not in log and log.rstrip().endswith("interrupted")
    with pytest.raises(ProcessLookupError):
        os.killpg(server.pid, 0)
    assert list(Path(tmp_path).glob("playground_*")) == []
