"""A process that claims jobs until none is left, and prints their ids."""

from __future__ import annotations

import sys
import time

from service.store.engine import connect
from service.store.ledger import SqlLedger


def main(url: str) -> None:
    engine = connect(url)
    ledger, empty = SqlLedger(engine), 0
    while empty < 3:  # others may hold the rows of the last jobs for a moment
        claim = ledger.claim("claimant", 1000)
        if claim is None:
            empty += 1
            time.sleep(0.05)
        else:
            print(claim.job_id)
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1])
