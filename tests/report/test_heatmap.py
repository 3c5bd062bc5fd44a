from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from medreason.report.heatmap import Marks, heat_map, square
from medreason.samples import MODALITIES, TASKS


def texts(figure) -> list[str]:  # noqa: ANN001
    return [text.get_text() for text in figure.axes[0].texts]


def test_full_matrix_shows_every_number_and_the_means() -> None:
    values = {f"{m}/{t}": float(i) for i, (m, t) in enumerate(itertools.product(MODALITIES, TASKS))}
    figure = heat_map(values, title="grpo")
    shown = texts(figure)
    assert len(shown) == 9 * 6
    assert "39.0" in shown
    assert shown[-1] == "19.5"  # the mean of all
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        *MODALITIES.values(),
        "All",
    ]
    assert figure.axes[0].get_title(loc="left").endswith("; All: mean over cells)")


def test_means_are_over_questions_where_their_numbers_are_given() -> None:
    values = {"ct/anatomy": 40.0, "ct/disease": 80.0, "mri/disease": 20.0}
    weights = {"ct/anatomy": 30, "ct/disease": 10, "mri/disease": 60}
    figure = heat_map(values, title="sft", weights=weights)
    shown = [text for text in texts(figure) if text != "\u2013"]
    assert shown == ["40.0", "80.0", "50.0", "20.0", "20.0", "40.0", "28.6", "32.0"]
    assert figure.axes[0].get_xticklabels()[-1].get_text() == "All"


def test_empty_cells_are_dashes_and_in_no_mean() -> None:
    shown = texts(heat_map({"ct/anatomy": 40.0, "ct/disease": None}, title="sft"))
    assert "0.0" not in shown
    assert shown == ["40.0"] * 4  # the cell, its row, its column, all


def test_rows_and_columns_without_a_value_are_left_out() -> None:
    figure = heat_map({"mri/disease": 40.0, "oct/grading": 60.0}, title="sft")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MRI", "OCT", "All"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("Disease", "Grading", "All")
    ]
    assert texts(figure).count("\u2013") == 2  # MRI has no grading, OCT no disease


def test_differences_carry_their_sign() -> None:
    values = {"ct/anatomy": -12.5, "oct/disease": 120.0}
    shown = texts(heat_map(values, title="d", vmin=-100, vmax=100, center=0))
    assert "\u221212.5" in shown
    assert "+120.0" in shown


def test_numbers_stand_out_from_their_cell() -> None:
    def luminance(rgb: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    cells = [f"{m}/{t}" for m, t in itertools.product(MODALITIES, TASKS)]
    for center in (None, 50):
        values = {cell: 2.5 * i for i, cell in enumerate(cells)}
        axes = heat_map(values, title="x", center=center).axes[0]
        for box, text in zip(axes.patches, axes.texts, strict=True):
            lights = sorted((luminance(box.get_facecolor()), luminance(to_rgb(text.get_color()))))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) > 4


def test_what_may_be_chance_is_pale_and_the_map_says_so() -> None:
    values = {"ct/anatomy": 40.0, "ct/disease": 40.0}
    marks = Marks({"ct/anatomy", "ct/all"}, "may be chance")
    axes = heat_map(values, title="d", vmin=-50, vmax=50, center=0, marks=marks).axes[0]
    clear, chance, row = (axes.patches[i].get_facecolor() for i in range(3))
    assert clear == row
    assert sum(chance[:3]) > sum(clear[:3])
    assert [t.get_fontweight() for t in axes.texts[:2]] == ["bold", "normal"]
    assert axes.texts[-1].get_text() == "Pale: may be chance"


def test_map_too_dense_for_numbers_has_a_scale_and_dots() -> None:
    cells = [f"{m}, {t}" for m, t in itertools.product(MODALITIES.values(), TASKS.values())]
    values = {(row, column): 20.0 for row in cells[:5] for column in cells}
    marks = Marks({(cells[0], cells[1]), (cells[2], cells[2])}, "may be chance")
    figure = square(cells, cells, values, title="d", vmin=-50, vmax=50, center=0, marks=marks)
    assert len(figure.axes) == 2  # the map and its scale
    dots, *_ = figure.axes[0].lines
    assert [*zip(*dots.get_data(), strict=True)] in (
        [(1.5, 0.5), (2.5, 2.5)],
        [(2.5, 2.5), (1.5, 0.5)],
    )
    none = square(cells, cells, values, title="d", center=0, vmin=-9, marks=Marks(set(), "m"))
    assert "here there is none" in none.axes[0].texts[-1].get_text()


RULE = "may be chance (paired test, Holm over the places, 5 % level)"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 3), (8, 5)])
def test_map_of_any_size_is_filled_and_its_texts_are_whole(rows: int, columns: int) -> None:
    cells = [f"{m}/{t}" for m in list(MODALITIES)[:rows] for t in list(TASKS)[:columns]]
    values, marks = dict.fromkeys(cells, 20.0), Marks(set(), RULE)
    figure = heat_map(values, title="d", vmin=-50, vmax=50, center=0, marks=marks)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    note, page = axes.texts[-1].get_window_extent(), figure.bbox
    assert page.x0 <= note.x0 <= note.x1 <= page.x1
    assert page.y0 <= note.y0
    titles = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))
    whole = 1 - 1.4 * figure.dpi / page.width  # less the names of the rows
    assert axes.get_window_extent().width / page.width >= whole


@pytest.mark.parametrize("sign", [1, -1])
def test_pale_differences_keep_their_hue_and_are_lighter_the_smaller_they_are(sign: int) -> None:
    values = {f"ct/{task}": sign * 10.0 * i for i, task in enumerate(TASKS, start=1)}
    marks = Marks(set(), RULE)
    axes = heat_map(values, title="d", vmin=-50, vmax=50, center=0, marks=marks).axes[0]
    colours = [box.get_facecolor()[:3] for box in axes.patches[: len(values)]]
    lightest, strongest = (0, 2) if sign < 0 else (2, 0)
    for small, large in itertools.pairwise(colours):
        assert sum(small) > sum(large) + 0.02
        assert small[strongest] > large[strongest]
    assert all(rgb[lightest] - rgb[strongest] > 0.02 for rgb in colours)
    assert colours[-1][lightest] - colours[-1][strongest] > 0.15


def test_square_has_what_was_trained_and_tested_alone_and_says_what_it_lacks() -> None:
    cells = [f"{m}, {t}" for m, t in itertools.product(MODALITIES.values(), TASKS.values())]
    modalities = [*MODALITIES.values()]
    few = {(row, column): 50.0 for row in modalities[:2] for column in modalities[:3]}
    own = {(row, column): 50.0 for row in cells[3:7] for column in cells}
    cases = ((modalities, few, "6 rows (not trained on), 5 columns (not tested on)"),
             (cells, own, "36 rows (not trained on)"))  # fmt: skip
    for names, values, left_out in cases:
        figure = square(names, names, values, title="sft minus base: accuracy, 40x40")
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert len(axes.get_yticks()) * len(axes.get_xticks()) == len(values)
        assert axes.texts[-1].get_text().replace("\n", " ") == f"Left out: {left_out}"
        assert "\u2013" not in texts(figure)
        assert axes.get_window_extent().height / figure.bbox.height > 0.25
        assert axes.texts[-1].get_window_extent().y0 >= 0
    lines = [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines]
    assert [y for x, y in lines if x == 0] == [2]  # between CT and MRI
    assert [x for x, y in lines if y == 0] == [5 * i for i in range(1, 8)]


def test_cells_that_are_not_said_are_left_out() -> None:
    values = {"ct/disease": 40.0, "unknown/disease": 80.0, "ct/unknown": 80.0}
    shown = sorted(text.get_text() for text in heat_map(values, title="a").axes[0].texts)
    assert shown == sorted(
        text.get_text() for text in heat_map({"ct/disease": 40.0}, title="a").axes[0].texts
    )
    assert heat_map({"unknown/unknown": 1.0}, title="a")


def test_unknown_cell_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'pet/disease' is no cell; modalities are"):
        heat_map({"pet/disease": 1.0}, title="x")


def test_long_title_is_not_cut_off() -> None:
    figure = heat_map(
        {"ct/anatomy": 40.0}, title="grpo no_think: above the options-only baseline, 8x5"
    )
    figure.draw_without_rendering()
    (title,) = (t for t in figure.findobj(Text) if t.get_text().startswith("grpo"))
    assert title.get_window_extent().x1 <= figure.bbox.x1


def test_figure_is_written_without_a_display(tmp_path: Path) -> None:
    heat_map({"ct/anatomy": 40.0}, title="x").savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5_000
