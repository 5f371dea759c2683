"""Metrics against scikit-learn and by hand, and the picture of a confusion matrix."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tats_fast.data.files import write_csv
from tats_fast.recognition.accuracy import (
    best_first,
    confusion_matrix,
    measure,
    places,
    top_accuracy,
)
from tats_fast.recognition.confusion import (
    LABEL_LENGTH,
    NOTHING,
    SHADES,
    cell_side,
    class_label,
    confusion_picture,
    confusion_rows,
    row_shares,
)

CLASSES = 7


@pytest.fixture
def scored():
    """Scores of 90 videos on a grid so coarse that most rows have ties; no video is of class 4."""
    scores = torch.randint(0, 6, (90, CLASSES)) / 6
    labels = torch.randint(0, CLASSES - 1, (90,))
    labels[labels >= 4] += 1
    return scores, labels


def test_accuracies_are_scikit_learns(scored):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = scored
    found = measure(scores, labels)
    # Of equal scores scikit-learn puts the greater class first: count classes from the other end.
    flipped = (CLASSES - 1 - labels.numpy(), scores.flip(1).numpy())
    for value, k in ((found.top1, 1), (found.top5, 5)):
        expected = metrics.top_k_accuracy_score(*flipped, k=k, labels=range(CLASSES))
        assert value == pytest.approx(expected)
    predicted = best_first(scores)[:, 0]
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, predicted))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found.mean_class == pytest.approx(balanced)
    matrix = confusion_matrix(predicted, labels, CLASSES)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))
    assert matrix.tolist() == expected.tolist()
    recalls = metrics.recall_score(
        labels, predicted, labels=range(CLASSES), average=None, zero_division=np.nan
    )
    assert found.per_class[4] is None and np.isnan(recalls[4])
    for number in {*range(CLASSES)} - {4}:
        assert found.per_class[number] == pytest.approx(recalls[number])
    assert (predicted == scores.argmax(1)).float().mean() == 1  # the first of equals, on the CPU


def test_lost_videos_count_as_wrong():
    scores = torch.eye(7)[[0, 1, 1]]
    labels, lost = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 5])
    assert measure(scores, labels).top1 == pytest.approx(2 / 3)
    found = measure(scores, labels, lost)
    assert found.top1 == pytest.approx(2 / 6)
    # Class 0 scores 0 for video 1, behind 1 but level with the rest, of which it is the first.
    assert found.top5 == pytest.approx(3 / 6)
    assert found.per_class == [0.5, pytest.approx(1 / 3), None, None, None, 0.0, None]
    assert found.mean_class == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_five_classes_have_no_top_5():
    assert measure(torch.eye(5), torch.arange(5)).top5 is None
    assert measure(torch.eye(6), torch.arange(6)).top5 == 1


def test_scores_that_are_no_numbers_are_refused():
    scores = torch.eye(3)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="scores of 1 of 3 videos are not finite"):
        measure(scores, torch.arange(3))
    with pytest.raises(ValueError, match="at least one video"):
        measure(scores[:0], torch.arange(0))


def test_of_equal_scores_the_first_counts_and_nan_never():
    scores = torch.tensor([[0.0, 1, 0, 0], [2, 1, 0, -1], [1, 1, 0, 0], [torch.nan, 0, 0, 0]])
    assert places(scores, torch.tensor([2, 1, 0, 0])).tolist() == [2, 1, 0, 4]
    assert places(scores, torch.tensor([3, 3, 1, 1])).tolist() == [3, 3, 1, 1]
    labels = torch.tensor([2, 1, 0, 0])
    assert [top_accuracy(scores, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 0.75]


def test_table_survives_any_name(tmp_path):
    names = ["a,b", 'say "x"', "走路"]
    matrix = torch.tensor([[1, 2, 0], [0, 3, 0], [0, 0, 0]])
    write_csv(tmp_path / "t.csv", confusion_rows(matrix, names))
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == names == [row[0] for row in rows]
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()


def cells_of(png: bytes, classes: int) -> np.ndarray:
    """Colours (K, K, 3) of the cells of a picture, found by its darkest colour, which must be in
    the first row, the last row and the last column."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = cell_side(classes)
    assert max(image.shape) < side * classes + 700 and len(png) < 2_000_000
    dark = (image == shades(np.array(1.0))).all(-1)
    rows, columns = (np.flatnonzero(dark.sum(axis) > side / 2) for axis in (1, 0))
    top, left = rows[0], columns[-1] + 1 - side * classes
    middles = (np.arange(classes) + 0.5) * side
    aside = 0 if side < 28 else 16  # from the middle, where a percentage may be written
    ys, xs = (top + middles).astype(int) - aside, (left + middles).astype(int) - aside
    return image[ys][:, xs]


def shades(shares: np.ndarray) -> np.ndarray:
    """The colours by hand: between those named along the square root, grey where NaN."""
    named = np.array([list(bytes.fromhex(shade[1:])) for shade in (*SHADES, NOTHING)])
    place = np.sqrt(np.nan_to_num(shares)) * 3
    colours = np.stack([np.interp(place, range(4), named[:4, i]) for i in range(3)], -1)
    return np.where(np.isnan(shares)[..., None], named[4], colours.round())


def test_rows_are_shares_and_few_videos_still_show():
    matrix = torch.tensor([[0, 0, 50], [1, 0, 99], [0, 0, 0]])
    shares = row_shares(matrix.numpy())
    assert shares[1].tolist() == [0.01, 0, 0.99] and np.isnan(shares[2]).all()
    cells = cells_of(confusion_picture(matrix, list("abc"), "title", "subtitle"), 3)
    one_percent, none = cells[1, :2].astype(int)
    assert none.tolist() == [255] * 3 and (none - one_percent).sum() > 40


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 101, 400])
def test_picture_shows_the_matrix(classes):
    """All videos of class 0 are taken for the last class, the others are right, one is missing."""
    matrix = torch.eye(classes, dtype=torch.int64) * 4
    matrix[0] = torch.tensor([0] * (classes - 1) + [4])
    if classes > 3:
        matrix[1, :4] = torch.tensor([30, 60, 1, 9])
    missing = classes - 2
    if missing > 0:
        matrix[missing] = 0
    names = [f"Putting {i} of {'many ' * (i % 30)}things" for i in range(classes)]
    png = confusion_picture(matrix, names, "top-1 50.00 %", f"{classes} classes")
    difference = cells_of(png, classes) - shades(row_shares(matrix.numpy()))
    assert np.abs(difference).max() <= 3  # matplotlib rounds to 256 colours


def test_labels_fit():
    long = class_label("Pretending to put " + "something " * 20 + "underneath", 0)
    assert long == "Pretending to put…mething underneath" and len(long) == LABEL_LENGTH - 1
    assert class_label("two\nlines", 0) == "two lines"
    # A name that the font cannot write gives way to the number.
    assert class_label("走路", 7) == class_label(" ", 7) == "class 7"
    assert class_label("Größe бег", 7) == "Größe бег"


def test_a_name_is_no_formula_and_a_picture_is_always_the_same():
    names = [r"$\frac$", "b"]  # to TeX an invalid formula
    one, two = (confusion_picture(torch.eye(2), names, "title", "subtitle") for _ in range(2))
    assert one == two
