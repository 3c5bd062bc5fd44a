"""The page as a reader uses it, in Debian's chromium; skipped where that or selenium is missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import draw_samples, reply, write_run

from medreason.config import Config
from medreason.report.page import page
from medreason.report.runs import load
from medreason.report.tables import gather
from medreason.samples import MODALITIES, TASKS, Sample

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (group dev)")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,1000"),
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser: Any, composed: Callable[..., Config], tmp_path: Path) -> Any:  # noqa: ANN401
    samples = draw_samples(tmp_path / "images")

    def start(i: int, sample: Sample) -> str:
        return reply("ABCD"[("ABCD".index(sample.answer) + (i % 2)) % 4])

    def trained(i: int, sample: Sample) -> str:
        return "<b>I cannot tell</b>" if i % 12 == 3 else reply(sample.answer, "<i>bright</i>")

    folders = [
        write_run(composed("method=base"), samples, start),
        write_run(composed("method=grpo"), samples, trained),
    ]
    path = tmp_path / "index.html"
    path.write_text(page(load(folders), sweep="demo", questions_per_cell=12), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def find(browser: Any, css: str) -> list[Any]:  # noqa: ANN401
    return browser.find_elements("css selector", css)


def press(browser: Any, css: str, name: str) -> None:  # noqa: ANN401
    [button] = [b for b in find(browser, f"{css} button") if b.text.startswith(name)]
    button.click()


def test_matrix_has_the_rows_and_columns_with_test_questions_alone(opened: Any) -> None:  # noqa: ANN401
    rows = [head.text for head in find(opened, '#matrix th[scope="row"]')]
    columns = [head.text for head in find(opened, '#matrix th[scope="col"]')]
    assert rows == ["CT", "MRI", "All"]
    assert columns == ["Anatomy", "Disease", "All"]
    assert len(find(opened, "#matrix td.empty")) == 1  # MRI, Anatomy
    note = find(opened, "#matrix-note")[0].text
    left_out = "6 rows; Grading, Modality, Attributes"
    assert f"Hatched: no test questions. Left out, without test questions: {left_out}. " in note


def test_cell_opens_its_questions_and_filters_choose_among_them(opened: Any) -> None:  # noqa: ANN401
    assert not find(opened, "#questions")[0].is_displayed()
    find(opened, '[data-cell="ct/disease"]')[0].click()
    assert find(opened, "#questions-heading")[0].text == "CT · Disease"
    able = r"this test can show [\d.]+ points or more; for 5 points it needs [\d,]+ questions"
    assert re.search(able, find(opened, "#questions")[0].text)
    assert len(find(opened, ".question")) == 12
    assert len(find(opened, ".question:first-child .answers article")) == 2

    press(opened, "#filter-choice", "Wrong")
    [wrong] = find(opened, ".question")
    assert "<b>I cannot tell</b>" in wrong.text  # as text
    press(opened, "#filter-choice", "Unparsed (1 of 1)")
    assert len(find(opened, ".question")) == 1
    press(opened, "#filter-choice", "Changed by training")
    assert len(find(opened, ".question")) == 5
    press(opened, "#run-choice", "base")
    press(opened, "#filter-choice", "Wrong (6 of 6)")
    assert len(find(opened, ".question")) == 6
    assert opened.get_log("browser") == []


def test_cell_opens_by_keyboard(opened: Any) -> None:  # noqa: ANN401
    cell = find(opened, '[data-cell="mri/disease"]')[0]
    opened.execute_script("arguments[0].focus()", cell)
    cell.send_keys("\ue007")  # Enter
    assert find(opened, "#questions-heading")[0].text == "MRI · Disease"
    assert opened.switch_to.active_element.get_attribute("id") == "questions"


def test_metric_and_run_change_the_map(opened: Any) -> None:  # noqa: ANN401
    cell = '[data-cell="ct/disease"] b'
    assert find(opened, cell)[0].text == "91.7"
    press(opened, "#metric-choice", "Difference")
    assert find(opened, cell)[0].text == "+41.7"
    press(opened, "#run-choice", "base")  # has no difference, so the map falls back
    assert find(opened, cell)[0].text == "50.0"
    assert find(opened, "td.empty span")[0].text == "\u2013"


@pytest.fixture
def matrix(browser: Any, composed: Callable[..., Config], tmp_path: Path) -> Any:  # noqa: ANN401
    """A start model that is always wrong, and two SFT models, each right on its own cell."""
    samples = draw_samples(tmp_path / "images")

    def right_on(*cells: tuple[str, str]) -> Callable[[int, Sample], str]:
        return lambda i, s: reply(
            s.answer if s.cell in cells else "ABCD"["ABCD".index(s.answer) - 1]
        )

    folders = [write_run(composed("method=base"), samples, right_on())]
    for modality in ("ct", "mri"):
        config = composed("method=sft", f"modality={modality}", "task=disease")
        folders.append(
            write_run(config, samples, right_on((modality, "disease")), key=modality * 6)
        )
    runs = load(folders)
    path = tmp_path / "index.html"
    path.write_text(page(runs, sweep="matrix", tables=gather(runs)), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def test_views_show_what_was_trained_against_what_was_tested(matrix: Any) -> None:  # noqa: ANN401
    press(matrix, "#view-choice", "Across cells")
    assert [b.text for b in find(matrix, "#arm-choice button")] == ["sft"]
    # Two of 40 cells were trained on, three tested.
    assert len(find(matrix, ".matrix tbody td")) == 2 * 3
    assert "Left out: 38 rows (not trained on); 37 columns (not tested). " in (
        find(matrix, "#matrix-note")[0].text
    )
    assert find(matrix, ".matrix .begins") == []  # a line is drawn where colours alone are seen
    press(matrix, "#view-choice", "Across modalities")
    assert [b.text for b in find(matrix, "#matrix td b")] == ["50.0", "0.0", "0.0", "100.0"]
    press(matrix, "#metric-choice", "Difference")
    assert find(matrix, "#matrix td b")[0].text == "+50.0*"
    assert [b.text for b in find(matrix, "#against-choice button")] == ["minus base"]
    press(matrix, "#view-choice", "Each cell's own model")
    find(matrix, '[data-cell="mri/disease"]')[0].click()
    assert find(matrix, "#questions-heading")[0].text == "MRI · Disease"
    assert "100.0 %" in find(matrix, "#questions-numbers")[0].text
    assert matrix.get_log("browser") == []


def test_lines_stand_between_the_modalities_of_a_table_of_cells(
    browser: Any,  # noqa: ANN401
    composed: Callable[..., Config],
    tmp_path: Path,
) -> None:
    (first, *_) = draw_samples(tmp_path / "images", per_cell=1)
    samples = [
        replace(first, id=f"{m}-{t}", modality=m, task=t)
        for m in list(MODALITIES)[:3]
        for t in TASKS
    ]
    folders = [
        write_run(composed("method=sft", f"modality={m}", "task=disease"), samples,
                  lambda i, s: reply(s.answer), key=m * 4)
        for m in list(MODALITIES)[:2]
    ]  # fmt: skip
    runs = load(folders)
    path = tmp_path / "index.html"
    path.write_text(page(runs, sweep="cells", tables=gather(runs)), encoding="utf-8")
    browser.get(path.as_uri())
    press(browser, "#view-choice", "Across cells")
    assert len(find(browser, ".matrix tbody tr.begins")) == 1
    heads = [head.text for head in find(browser, ".matrix thead .begins")]
    assert heads == ["MRI, Anatomy", "X-ray, Anatomy"]
    title = find(browser, '.matrix [data-cell="ct/disease"]')[0].get_attribute("title")
    assert "accuracy 100.0 % [\u2013] of 1 in 1 clusters" in title


@pytest.fixture
def crowd(browser: Any, composed: Callable[..., Config], tmp_path: Path) -> Any:  # noqa: ANN401
    """A start model that is always wrong, and six SFT and six GRPO models, right on their own."""
    samples = draw_samples(tmp_path / "images", per_cell=4)

    def right_on(modality: str) -> Callable[[int, Sample], str]:
        return lambda i, s: reply(
            s.answer if s.modality == modality else "ABCD"["ABCD".index(s.answer) - 1]
        )

    folders = [write_run(composed("method=base"), samples, right_on("original"))]
    for method in ("sft", "grpo"):
        for modality in ("ct", "mri"):
            for seed in range(3):
                cell = (f"modality={modality}", "task=disease", f"seed={seed}")
                config = composed(f"method={method}", *cell)
                key = f"{method}{modality}{seed}000000"[:12]
                folders.append(write_run(config, samples, right_on(modality), key=key))
    runs = load(folders)
    path = tmp_path / "index.html"
    path.write_text(page(runs, sweep="crowd", tables=gather(runs)), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def test_run_among_many_is_found_by_method_and_what_it_was_trained_on(crowd: Any) -> None:  # noqa: ANN401
    press(crowd, "#view-choice", "One run")
    press(crowd, "#arm-choice", "grpo")
    [parts] = find(crowd, "#part-choice select")
    names = [option.text for option in parts.find_elements("css selector", "option")]
    assert names[0] == "CT/Disease, seed 0"
    assert len(names) == 6
    parts.send_keys("\ue010")  # End: the last of them, by keyboard
    assert find(crowd, '[data-cell="mri/disease"] b')[0].text.startswith("100.0")
    press(crowd, "#arm-choice", "sft")  # stays on what was trained on
    assert find(crowd, "#part-choice option:checked")[0].text == "MRI/Disease, seed 2"
    find(crowd, '[data-cell="mri/disease"]')[0].click()
    heads = [
        h.text.split("\n")[0] for h in find(crowd, ".question:first-child h4 span:first-child")
    ]
    assert heads == ["base", "sft MRI/Disease seed 2", "grpo MRI/Disease seed 2"]
    assert crowd.get_log("browser") == []


def test_methods_are_compared_with_each_other_and_chance_is_pale(crowd: Any) -> None:  # noqa: ANN401
    press(crowd, "#metric-choice", "Difference")
    against = [b.text for b in find(crowd, "#against-choice button")]
    assert against == ["minus base", "minus grpo"]
    # Four questions a cell, all right that were wrong: p = 1/8, not clear by themselves.
    [cell] = find(crowd, '[data-cell="ct/disease"] b')
    assert cell.text == "+100.0"
    assert "color-mix" in find(crowd, '[data-cell="ct/disease"]')[0].find_element(
        "xpath", ".."
    ).get_attribute("style")
    assert "here every place" in find(crowd, "#matrix-note")[0].text
    press(crowd, "#against-choice", "minus grpo")
    assert find(crowd, '[data-cell="ct/disease"] b')[0].text == "+0.0"
    assert crowd.get_log("browser") == []


def test_single_runs_unfold_by_keyboard(crowd: Any) -> None:  # noqa: ANN401
    fold = find(crowd, "details.fold")[1]
    assert not fold.find_element("css selector", "table").is_displayed()
    fold.find_element("css selector", "summary").send_keys("\ue007")  # Enter
    assert fold.find_element("css selector", "table").is_displayed()


def test_no_table_of_many_runs_scrolls_sideways(crowd: Any) -> None:  # noqa: ANN401
    crowd.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    wider = "(e) => e.scrollWidth - e.clientWidth"
    size = {"width": 1300, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    crowd.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    regions = f"return [...document.querySelectorAll('.scroll')].map({wider})"
    assert max(crowd.execute_script(regions)) <= 0
    crowd.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"width": 800})
    assert crowd.execute_script(f"return ({wider})(document.documentElement)") <= 0


@pytest.mark.parametrize("width", [1239, 1040])
def test_table_with_every_column_fits_a_small_window(
    browser: Any,  # noqa: ANN401
    composed: Callable[..., Config],
    tmp_path: Path,
    width: int,
) -> None:
    samples = draw_samples(tmp_path / "images")
    words = ("method=grpo", "modality=ct", "task=disease", "validation=in_domain")
    logs = [{"step": 10, "validation/accuracy": 0.5}]
    folders = [
        write_run(composed("method=base"), samples, lambda i, s: reply("A")),
        write_run(
            composed(*words), samples, lambda i, s: reply(s.answer), logs=logs, chosen_step=10
        ),
    ]
    path = tmp_path / "index.html"
    path.write_text(page(load(folders), sweep="demo"), encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    assert len(find(browser, "section:first-of-type .runs thead tr:last-child th")) > 12
    region = "const r = document.querySelector('.scroll'); return r.scrollWidth - r.clientWidth"
    assert browser.execute_script(region) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(opened: Any, scheme: str) -> None:  # noqa: ANN401
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.execute_script("document.querySelector('[data-cell]').click()")
    page_size = "const p = document.documentElement; return [p.scrollWidth, p.clientWidth]"
    needed, there = opened.execute_script(page_size)
    assert needed <= there <= 390
