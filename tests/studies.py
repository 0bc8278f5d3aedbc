"""Tiny studies, and executors that tests can look into."""

from __future__ import annotations

from blemish.datasets.synthetic import write_dataset
from blemish.study.group import run_group
from blemish.study.messages import Started, WorkerDied, WorkerSettings
from blemish.study.plan import StudyPlan

ONE_THREAD = WorkerSettings(threads=1)


def write_products(folder):
    """Two data sets of 16 normal images and 10 test images each."""
    for product in ("washer", "weave"):
        write_dataset(folder / product, product=product, n_train=16, n_test_normal=3, n_per_defect=1, size=64)
    return folder


def plan(root, /, **changes):
    small = {"backbones": ("filters",), "resize": 64, "held_out": 0.25, "false_alarm_rate": 0.25, "intervals": False}
    return StudyPlan(**{"data": (str(root / "washer"),), "methods": ("padim", "knn"), **small, **changes})


class Inline:
    """Runs groups in this process, where tests can look."""

    workers = 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, group):
        yield from run_group(group, ONE_THREAD)


class Scripted(Inline):
    """Dies where a test says so."""

    def __init__(self, *deaths):
        self.deaths, self.runs = list(deaths), []

    def run(self, group):
        self.runs.append([cell.method for cell in group.cells])
        death = self.deaths.pop(0) if self.deaths else None
        for message in super().run(group):
            if death == "reading":
                raise WorkerDied("killed")
            yield message
            if isinstance(message, Started) and [c.method for c in group.cells if c.key == message.key] == [death]:
                raise WorkerDied("killed")
