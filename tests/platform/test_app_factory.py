"""The exclusion of loaded objects from garbage collection."""

import sys

from tests.process import run


def test_objects_are_frozen_again_only_if_an_entry_point_has_frozen_them() -> None:
    script = """
import gc
from ml.platform.app_factory import freeze_gc, freeze_gc_again
freeze_gc_again()
assert gc.get_freeze_count() == 0
freeze_gc()
count = gc.get_freeze_count()
loaded_since = [[] for _ in range(1000)]
freeze_gc_again()
assert gc.get_freeze_count() >= count + 1000
"""
    ended = run(sys.executable, "-c", script)
    assert (ended.returncode, ended.stderr) == (0, "")
