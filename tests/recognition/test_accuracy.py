"""Metrics against scikit-learn and by hand, and the picture of a confusion matrix."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tats_fast.data.files import write_csv
from tats_fast.recognition import confusion as module
from tats_fast.recognition.accuracy import best_first, confusion_matrix, measure
from tats_fast.recognition.confusion import (
    NOTHING,
    cell_side,
    confusion_picture,
    confusion_rows,
    row_shares,
    shades,
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


def test_table_survives_any_name(tmp_path):
    names = ["a,b", 'say "x"', "走路"]
    matrix = torch.tensor([[1, 2, 0], [0, 3, 0], [0, 0, 0]])
    write_csv(tmp_path / "t.csv", confusion_rows(matrix, names))
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == names == [row[0] for row in rows]
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()


def test_colours_are_shares_of_a_row():
    shares = row_shares(np.array([[3, 1], [0, 0]]))
    assert shares[0].tolist() == [0.75, 0.25] and np.isnan(shares[1]).all()
    colours = shades(np.array([0, 0.01, 0.25, 1, np.nan]))
    assert colours[0].tolist() == [255, 255, 255] and colours[4].tolist() == list(NOTHING)
    # Brightness falls, and 1 % can be told from none.
    brightness = colours[:4].sum(1).astype(int)
    assert (np.diff(brightness) < 0).all() and brightness[0] - brightness[1] > 40


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 101, 400])
def test_picture_shows_the_matrix(classes):
    """All videos of class 0 are taken for the last class, the others are right, one is missing."""
    matrix = torch.eye(classes, dtype=torch.int64) * 4
    matrix[0] = torch.tensor([0] * (classes - 1) + [4])
    missing = classes - 2
    if missing > 0:
        matrix[missing] = 0
    names = [f"Putting {i} of {'many ' * (i % 30)}things" for i in range(classes)]
    png = confusion_picture(matrix, names, "top-1 50.00 %", f"{classes} classes")
    image = np.asarray(Image.open(io.BytesIO(png)))
    side = cell_side(classes) * classes
    assert max(image.shape) < side + 700 and len(png) < 2_000_000
    # Where the darkest colour is in most of a row or column of cells there is the matrix.
    dark = (image == shades(np.array(1.0))).all(-1)
    rows, columns = (np.flatnonzero(dark.sum(axis) > cell_side(classes) / 2) for axis in (1, 0))
    top, left = rows[0], columns[-1] + 1 - side
    middles = (np.arange(classes) + 0.5) * cell_side(classes)
    # Beside the middle, where a percentage may be written.
    aside = 0 if cell_side(classes) < 28 else 16
    ys, xs = (top + middles).astype(int) - aside, (left + middles).astype(int) - aside
    cells = image[ys][:, xs].reshape(classes, classes, 3)
    assert (cells == shades(row_shares(matrix.numpy()))).all()


def test_labels_fit(monkeypatch):
    long = module._label("Pretending to put " + "something " * 20 + "underneath", 0, 13)
    assert 200 < long.width <= module.LABEL_WIDTH
    end = module._label("Pretending to put " + "something " * 20 + "on top", 0, 13)
    assert long.tobytes() != end.tobytes(), "names that differ at the end stay different"
    assert (
        module._label("two\nlines", 0, 13).tobytes() == module._label("two lines", 0, 13).tobytes()
    )
    # Without a font for it a name gives way to the number; two scripts, so that none has both.
    monkeypatch.setattr(module, "FONTS", ())
    module._fonts.cache_clear()
    number = module._text("class 7", 13).tobytes()
    assert module._label("走路", 7, 13).tobytes() == number
    assert module._label(" ", 7, 13).tobytes() == number
    assert module._label("walk", 7, 13).tobytes() != number
    module._fonts.cache_clear()
