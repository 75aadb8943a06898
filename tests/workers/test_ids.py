from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from workers.ids import new_id


def test_ids_say_their_kind_and_sort_by_when_they_were_made() -> None:
    ids = [new_id("job") for _ in range(1000)]
    assert all(re.fullmatch(r"job_[0-9a-z]{26}", one) for one in ids)
    assert ids == sorted(ids)


def test_threads_get_different_ones() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: [new_id("job") for _ in range(1000)], range(8)))
    assert len({one for each in found for one in each}) == 8000
