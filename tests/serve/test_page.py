"""The page of the server in a real browser: a cell is asked, two models are compared, the report follows the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from cycleqd_jax.serve import Job

from .small_server import SeveralModels, serving

WAIT_S = 120
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browsers = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver, which are not installed"
)


def test_policies(server):
    page = httpx.get(server.address)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "://" not in page.text  # nothing comes from elsewhere
    for name in ("page.js", "page.css"):
        assert httpx.get(f"{server.address}/static/{name}").status_code == 200
    assert httpx.get(f"{server.address}/static/..%2fpages.py").status_code == 404
    assert httpx.get(f"{server.address}/report").status_code == 404
    assert httpx.get(f"{server.address}/report/state").json() == {"name": "several", "run": False, "version": None}


@pytest.mark.exhaustive
def test_the_report_is_built_again_when_the_journal_has_grown(models, make_run, undrawn, monkeypatch):
    monkeypatch.setattr("cycleqd_jax.serve.pages.REBUILD_S", 0.0)
    run = make_run()
    journal = run / "history.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-6]))
    with serving(SeveralModels(models, run)) as server:
        first = httpx.get(f"{server.address}/report", timeout=WAIT_S)
        state = httpx.get(f"{server.address}/report/state").json()
        assert first.headers["content-security-policy"] == "frame-ancestors 'self'"
        assert httpx.get(f"{server.address}/report", timeout=WAIT_S).text == first.text
        journal.write_text("".join(lines))
        assert httpx.get(f"{server.address}/report/state").json()["version"] != state["version"]
        assert httpx.get(f"{server.address}/report", timeout=WAIT_S).text != first.text


def test_the_version_is_not_ahead_of_the_report(models, make_run, undrawn, monkeypatch):
    run = make_run()
    with serving(SeveralModels(models, run)) as server:
        assert httpx.get(f"{server.address}/report", timeout=WAIT_S).status_code == 200
        version = httpx.get(f"{server.address}/report/state").json()["version"]
        (run / "history.jsonl").touch()
        # The page must not take the old report, which is still shown, for the new one.
        assert httpx.get(f"{server.address}/report/state").json()["version"] == version
        monkeypatch.setattr("cycleqd_jax.serve.pages.REBUILD_S", 0.0)
        assert httpx.get(f"{server.address}/report/state").json()["version"] != version


def test_a_folder_that_cannot_be_written_has_no_report(models, tmp_path, monkeypatch):
    def refuse(run):
        raise OSError("read-only file system")

    monkeypatch.setattr("cycleqd_jax.serve.pages.write_report", refuse)
    with serving(SeveralModels(models, tmp_path)) as server:
        answer = httpx.get(f"{server.address}/report")
        assert answer.status_code == 503
        assert "read-only file system" in answer.json()["error"]["message"]


def test_a_run_without_a_journal_has_no_report_yet(models, tmp_path):
    with serving(SeveralModels(models, tmp_path)) as server:
        assert httpx.get(f"{server.address}/report").status_code == 503


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1400"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_page_load_timeout(WAIT_S)
    driver.set_script_timeout(WAIT_S)
    try:
        yield driver
    finally:
        driver.quit()


def until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S).until(condition)


def element(browser, name):
    return browser.find_element("id", name)


def fill(browser, name, text):
    element(browser, name).clear()
    element(browser, name).send_keys(text)


def ask(browser):
    element(browser, "send").click()
    until(browser, lambda b: element(b, "status").text == "Complete.")


def shown(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def reply(reference, tokenizer, model, text, tokens):
    found = reference(Job(model, tuple(tokenizer.encode([{"role": "user", "content": text}])), tokens))
    return tokenizer.decode([i for i in found.ids if i not in tokenizer.stop_ids])


def errors(browser):
    """Errors of scripts and violations of the policy; answers with an error status are logged too, and belong to the test."""
    return [
        one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE" and "status of" not in one["message"]
    ]


@pytest.mark.exhaustive
@browsers
@pytest.mark.timeout(600)
def test_a_cell_is_asked_and_two_models_are_compared(models, make_run, undrawn, browser, reference, tokenizer):
    with serving(SeveralModels(models, make_run())) as server:
        browser.get(server.address)
        until(browser, lambda b: element(b, "report").get_attribute("src"))
        assert shown(browser, "name") == "several"
        text = "<img src=x onerror=alert(1)> hello"
        for name, value in {"first": "one", "second": "two", "prompt": text, "tokens": "12"}.items():
            fill(browser, name, value)
        ask(browser)
        assert shown(browser, "reply-first") == reply(reference, tokenizer, "one", text, 12)
        assert shown(browser, "reply-second") == reply(reference, tokenizer, "two", text, 12)
        assert shown(browser, "title-second") == "Reply of two"

        browser.switch_to.frame("report")
        cell = until(browser, lambda b: b.find_elements("css selector", "rect[data-id]"))[-1]
        identity = cell.get_attribute("data-id")
        browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", cell)
        browser.switch_to.default_content()
        until(browser, lambda b: element(b, "first").get_attribute("value") == f"child:{identity}")
        fill(browser, "second", "")
        ask(browser)
        assert server.catalog.expressed[-1] == f"child:{identity}"
        assert not element(browser, "panel-second").is_displayed()
        assert errors(browser) == []


@pytest.mark.exhaustive
@browsers
@pytest.mark.timeout(600)
def test_the_page_is_usable_without_a_mouse_and_asks_for_the_key(models, browser, tmp_path):
    with serving(SeveralModels(models), key="secret") as server:
        browser.get(server.address)
        until(browser, lambda b: element(b, "login").is_displayed())
        active = browser.switch_to.active_element
        assert active.get_attribute("id") == "key"
        assert active.accessible_name == "Key of the server"
        active.send_keys("wrong\n")
        until(browser, lambda b: "Failed" in element(b, "status").text)
        fill(browser, "key", "secret\n")
        until(browser, lambda b: element(b, "first").get_attribute("value") == "one")
        for name in ("first", "second", "prompt", "tokens"):  # every field has a name for screen readers
            assert element(browser, name).accessible_name
        assert element(browser, "run").is_displayed() is False
        fill(browser, "prompt", "hello")
        fill(browser, "first", "nothing")
        element(browser, "send").send_keys("\n")
        until(browser, lambda b: "Failed: expected one of one, two, three" in element(b, "status").text)
        assert errors(browser) == []
        browser.save_screenshot(str(tmp_path / "page.png"))
        assert Path(tmp_path / "page.png").stat().st_size > 0
