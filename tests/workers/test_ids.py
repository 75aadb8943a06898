from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from workers.ids import new_id


def test_ids_say_their_kind_sort_by_time_and_are_all_different() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: [new_id("job") for _ in range(1000)], range(8)))
    assert all(ids == sorted(ids) for ids in found)
    ids = [one for each in found for one in each]
    assert len(set(ids)) == 8000
    assert all(re.fullmatch(r"job_[0-9a-z]{26}", one) for one in ids)
