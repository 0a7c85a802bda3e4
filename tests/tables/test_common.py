"""What tables share."""

from __future__ import annotations

from edgecls.tables.common import in_lines


def test_long_names_are_cut_between_their_words() -> None:
    assert in_lines("20261130-053809-efficientnet_lite0 (best)") == "20261130-053809-\nefficientnet_\nlite0 (best)"
    assert in_lines("cnn") == "cnn"
    assert in_lines("x" * 40) == "x" * 40  # the table itself cuts it
    assert "".join(in_lines("-a--b_c d/e" * 5).split("\n")) == "-a--b_c d/e" * 5
