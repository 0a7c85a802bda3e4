"""How actors are laid on the machines of a cluster: each must fit on one, or Ray waits for ever."""

from __future__ import annotations

import pytest

on_ray = pytest.importorskip("edgecls.scale.on_ray", reason="no Ray", exc_type=ImportError)


@pytest.mark.parametrize(
    ("nodes", "workers", "most", "expected"),
    [
        ([(2, 0)], None, 9, (1, 2, 0)),
        ([(1, 0)], None, 9, (1, 1, 0)),
        ([(8, 0), (8, 0)], None, 99, (8, 2, 0)),
        ([(8, 0), (8, 0)], 2, 99, (2, 8, 0)),
        ([(3, 0), (3, 0)], None, 99, (2, 3, 0)),
        ([(3, 0), (3, 0)], 3, 99, (3, 1, 0)),
        ([(2, 0)], 4, 99, (2, 1, 0)),
        ([(1, 0)] * 5, None, 99, (1, 1, 0)),
        ([(8, 0), (8, 1)], None, 99, (1, 8, 1)),
        ([(16, 3)], 4, 99, (3, 5, 1)),
        ([(4, 8)], None, 99, (8, 0, 1)),
        ([(16, 0)], None, 1, (1, 16, 0)),
        ([], None, 3, (1, 1, 0)),
    ],
)
def test_every_actor_fits_on_a_machine(
    nodes: list[tuple[int, int]], workers: int | None, most: int, expected: tuple[int, int, int]
) -> None:
    assert on_ray.placed(nodes, workers, most) == expected
    n, cores, gpus = expected
    if nodes:
        room = [min(have // cores if cores else n, own // gpus if gpus else n) for have, own in nodes]
        assert sum(room) >= n
