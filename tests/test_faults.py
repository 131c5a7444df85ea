"""Every row of what rpcd survives has a test that is named after it, or says why it has none."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent.parent / "docs" / "_ext"))

import rpcd_faults

FOUND = rpcd_faults.tests()
ROWS = [(kind, row) for kind, table in rpcd_faults.rows().items() for row in table]


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=[f"{kind}_{row['number']:02}" for kind, row in ROWS])
def test_each_row_has_a_test(kind: str, row: dict[str, str]) -> None:
    shown = FOUND.get((kind, row["number"]))
    assert shown or row.get("instead"), f"no test_{kind}_{row['number']:02}_... in tests/, and no word why: {row['what']}"


def test_each_test_has_a_row() -> None:
    assert set(FOUND) <= {(kind, row["number"]) for kind, row in ROWS}


def test_rows_are_numbered_without_gaps() -> None:
    for kind, table in rpcd_faults.rows().items():
        assert [row["number"] for row in table] == list(range(1, len(table) + 1)), kind
