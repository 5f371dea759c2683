"""Which releases Triton's interpreter runs with; what does not run is skipped with a reason."""

from __future__ import annotations

import pytest
from kernel_checks import interpreter_problem


@pytest.mark.parametrize(
    ("triton", "numpy", "named"),
    [
        ("3.6.0", "2.4.6", "int(array)"),
        ("3.6.0", "3.0.0", "int(array)"),
        ("3.6.0", "2.3.5", None),
        ("3.9.0", "2.4.6", None),
        (None, "2.4.6", None),
    ],
)
def test_triton_and_numpy_that_do_not_fit_are_named(triton, numpy, named):
    problem = interpreter_problem(True, triton, numpy)
    assert problem is None if named is None else named in problem


def test_without_the_variable_its_name_is_said():
    assert "TRITON_INTERPRET=1" in interpreter_problem(False, "3.9.0", "2.3.5")
