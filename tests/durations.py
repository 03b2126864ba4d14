"""What the tests take, file by file: sums the durations that pytest tells, of setups, calls and teardowns.

python -m pytest -n auto --durations 0 --durations-min 0 | tee out/tests.log | tail -3
python tests/durations.py out/tests.log
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable

LINE = re.compile(r"([\d.]+)s (?:call|setup|teardown) +([^\s:]+)::")


def seconds_by_file(lines: Iterable[str]) -> Counter[str]:
    """Seconds of each file, of the lines that pytest prints under "slowest durations"."""
    seconds: Counter[str] = Counter()
    for line in lines:
        if found := LINE.match(line):
            seconds[found[2]] += float(found[1])
    return seconds


if __name__ == "__main__":
    with open(sys.argv[1]) as log:
        by_file = seconds_by_file(log)
    for name, total in by_file.most_common():
        print(f"{total:8.1f} s  {name}")
    print(f"{by_file.total():8.1f} s  in all")
