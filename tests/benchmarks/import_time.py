"""The time of `import pyroflows` against that of `import pyro, zuko`, each in a fresh process.

python -m tests.benchmarks.import_time
"""

import subprocess
import sys
from collections.abc import Callable

from tests.benchmarks.timing import compare


def _importing(modules: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)


if __name__ == "__main__":
    print("import:", compare(_importing("pyroflows"), _importing("pyro, zuko"), rounds=15))
