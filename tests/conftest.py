import os
import sys
from functools import cache
from pathlib import Path

import typer.testing
from hypothesis import HealthCheck, settings

# Before torch is imported. In how many threads a product is shared decides its last digits, which some tests compare;
# and a process for each core (`make test`) is faster than threads.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # for `from reference import ...`
# A slow machine is no failure, and neither is bad luck: the same examples come in every run.
settings.register_profile("blemish", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("blemish")
# Every call of the command line would read the signatures of all commands again, which takes longer than most of them.
typer.testing._get_command = cache(typer.testing._get_command)
