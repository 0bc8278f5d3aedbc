import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for `from reference import ...`
settings.register_profile("blemish", deadline=None)  # a slow machine is no failure
settings.load_profile("blemish")
