"""Pictures of a search's page and of MLflow's curves while a training runs, which it starts.

    python -m experiments.validation.pictures OUTPUTS SWEEP PICTURES

OUTPUTS holds the finished search SWEEP and its report. Needs Chromium with its driver (Debian:
chromium-driver).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By

from experiments.demo.pictures import address_of, open_browser, take
from medreason.training.selection import SCORE

TRAINING = (
    *("method=sft", "modality=xray", "prompt=no_think", "data.train_images=48"),
    *("data.test_images=1", "method.trl.max_steps=96", "validation=transfer", "validation.every=4"),
    *("validation.share=0.3", "validation.questions=40", "validation.select=best"),
    *("validation.max_new_tokens=20", "evaluation.max_new_tokens=20", "hardware.threads=1"),
    "evaluation.modalities=[xray]",
)
MOMENTS = (2, 9)
"""Validations after which MLflow's curves are taken."""


def main(outputs: Path, sweep: str, pictures: Path) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    browser = open_browser()
    take_page(browser, outputs / "reports" / sweep / "index.html", pictures / "search.png")
    words = [*TRAINING, f"outputs={outputs}", "sweep=live"]
    command = [sys.executable, "-m", "medreason.tracking.pages", outputs, "--port", "5078"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            experiment, _, _ = address_of(server).partition("?")
            with subprocess.Popen([sys.executable, "-m", "medreason", *words]) as training:
                take_live(browser, training, experiment, outputs, pictures)
        finally:
            server.terminate()
    report = [sys.executable, "-m", "medreason", "action=report"]
    subprocess.run([*report, f"outputs={outputs}", "sweep=live"], check=True)
    take_page(browser, outputs / "reports/live/index.html", pictures / "curves.png")
    browser.quit()


def take_page(browser: webdriver.Chrome, page: Path, picture: Path) -> None:
    """The whole of a report."""
    browser.set_window_size(1200, 900)
    browser.get(page.resolve().as_uri())
    height = browser.find_element(By.TAG_NAME, "body").size["height"]
    browser.set_window_size(1200, min(height + 200, 5000))
    browser.save_screenshot(picture)


def take_live(
    browser: webdriver.Chrome,
    training: subprocess.Popen[bytes],
    experiment: str,
    outputs: Path,
    pictures: Path,
) -> None:
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    for number, validations in enumerate(MOMENTS, start=1):
        run = wait_for_validations(client, training, validations)
        address = f"{experiment}/{run}/model-metrics"
        browser.get("about:blank")  # the address of the moment before would not load the page anew
        take(browser, address, pictures / f"live-{number}.png", "curves", "validation/accuracy")


def wait_for_validations(
    client: MlflowClient, training: subprocess.Popen[bytes], validations: int
) -> str:
    """The training's run, once MLflow has so many points of its curve."""
    while training.poll() is None:
        for run in client.search_runs(experiments(client), "tags.`medreason.sweep` = 'live'"):
            if len(client.get_metric_history(run.info.run_id, f"curves/{SCORE}")) >= validations:
                return run.info.run_id
        time.sleep(0.5)
    raise SystemExit(f"the training ended before {validations} validations were seen")


def experiments(client: MlflowClient) -> list[str]:
    found = client.get_experiment_by_name("medreason")
    return [found.experiment_id] if found else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
