"""The READMEs' pictures of report and MLflow, from what `make demo` has left: README.md."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

from mlflow import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SEARCH = """tags."medreason.modality" = 'xray' and metrics."test/above_prior/xray-disease" > 0.1"""

_WITHOUT_TOOLS = """document.head.insertAdjacentHTML(
    'beforeend', '<style>.modebar-container { display: none }</style>')"""
"""Hides what a mouse over a chart shows, which a browser without one shows over the curves."""


def main(outputs: Path, folder: Path) -> None:
    """Write the pictures to a folder."""
    browser = open_browser()
    take_report(browser, outputs / "reports/demo/index.html", folder / "report.png")
    command = [sys.executable, "-m", "medreason.tracking.pages", outputs, "--port", "5077"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            page = address_of(server)
            take(browser, page, folder / "mlflow-runs.png", "grpo")
            experiment, _, _ = page.partition("?")
            query = {"workflowType": "machine_learning", "searchFilter": SEARCH}
            query |= {"orderByKey": "metrics.`test/accuracy`", "orderByAsc": "false"}
            found = f"{experiment}?{urlencode(query)}"
            take(browser, found, folder / "mlflow-search.png", "grpo")
            run = f"{experiment}/{run_of(outputs, 'grpo')}/model-metrics"
            take(browser, run, folder / "mlflow-curves.png", "first_update")
        finally:
            server.terminate()
    browser.quit()


def address_of(server: subprocess.Popen[str]) -> str:
    """The page with the newest sweep's runs, once it answers."""
    assert server.stdout
    return next(line.split()[-1] for line in server.stdout if "newest sweep" in line)


def open_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options)


def take_report(browser: webdriver.Chrome, page: Path, file: Path) -> None:
    browser.set_window_size(1200, 2200)
    browser.get(page.resolve().as_uri())
    browser.save_screenshot(file)


def take(
    browser: webdriver.Chrome, address: str, file: Path, awaited: str, searched: str = ""
) -> None:
    """A picture of the page once it shows a text; of metrics those alone that are searched for."""
    browser.set_window_size(1500, 780)
    wait = WebDriverWait(browser, 300, ignored_exceptions=[WebDriverException])
    wait.until(lambda b: b.get(address) or True)
    wait.until(lambda b: awaited in b.find_element(By.TAG_NAME, "body").text)
    for close in browser.find_elements(By.CSS_SELECTOR, "button[aria-label='Close']"):
        close.click()  # the assistant beside the page
    if searched:
        field = browser.find_element(By.CSS_SELECTOR, "input[placeholder*='metric']")
        if not field.get_attribute("value"):  # the page of the picture before stays as it is
            field.send_keys(searched)
    time.sleep(8)  # charts draw themselves
    browser.execute_script(_WITHOUT_TOOLS)
    browser.save_screenshot(file)


def run_of(outputs: Path, method: str) -> str:
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("medreason")
    assert experiment
    search = f"tags.`medreason.sweep` = 'demo' and tags.`medreason.method` = '{method}'"
    (run, *_) = client.search_runs([experiment.experiment_id], search)
    return run.info.run_id


if __name__ == "__main__":
    given = map(Path, sys.argv[1:])
    main(next(given, Path("outputs")), next(given, Path(__file__).parent))
