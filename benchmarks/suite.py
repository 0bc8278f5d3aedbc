"""Where the tests spend processor time: python benchmarks/suite.py [pytest's arguments, as tests/test_cli.py]

Every test with its fixtures and the processes that it waited for, one after another in one process, so that little
depends on what else the machine does. Prints files, then tests, the dearest first. Who comes first pays for imports.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Generator

import pytest

DEAREST = int(os.environ.get("DEAREST", "60"))


def processor_seconds() -> float:
    """What this process and its finished children have used."""
    return sum(os.times()[:4])


class Cost:
    """A plugin that adds up what every test costs."""

    def __init__(self) -> None:
        self.tests: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        began = processor_seconds()
        outcome = yield
        self.tests[item.nodeid] = processor_seconds() - began
        return outcome


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    cost = Cost()
    began = processor_seconds()
    status = pytest.main(["-n", "0", *sys.argv[1:]], plugins=[cost])
    files: dict[str, float] = defaultdict(float)
    for test, seconds in cost.tests.items():
        files[test.split("::")[0]] += seconds
    for table in (files, cost.tests):
        print()
        for name, seconds in sorted(table.items(), key=lambda line: -line[1])[:DEAREST]:
            print(f"{seconds:7.2f}  {name}")
    print(f"\n{processor_seconds() - began:.0f} s in {len(cost.tests)} tests, imports and collection included")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
