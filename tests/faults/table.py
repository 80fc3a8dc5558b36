"""What the museum has shown: share of faults whose cause was named first, and which cause was taken for which.

`python -m tests.faults.table RECORD` prints it as Markdown.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from tests.faults.stories import STORIES


def main() -> None:
    """Print the figures of one pass through the museum."""
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    faults = [line for line in lines if line["code"]]
    healthy = [line for line in lines if not line["code"]]
    first = {line["name"]: (line["found"] or ["nothing"])[0] for line in faults}
    right = sum(first[line["name"]] == line["code"] for line in faults)
    rows = {line["row"] for line in faults if line["row"] != "-"}
    print(f"{right} of {len(faults)} faults named first ({right / len(faults):.0%}), {len(rows)} rows of the catalogue")
    alarms = [line for line in healthy if line["found"]]
    print(f"{len(alarms)} of {len(healthy)} healthy runs with a finding: {[line['found'] for line in alarms]}\n")
    print("| row | what was injected | its cause | named first |\n|---|---|---|---|")
    for line in faults:
        named = first[line["name"]]
        verdict = "yes" if named == line["code"] else f"`{named}`"
        print(f"| {line['row']} | {line['name']} | `{line['code']}` | {verdict} |")
    wrong = Counter((line["code"], first[line["name"]]) for line in faults if first[line["name"]] != line["code"])
    print("\n| cause | taken for | times |\n|---|---|---|")
    for (code, named), times in wrong.most_common():
        print(f"| `{code}` | `{named}` | {times} |")
    print("\n| what the report blames | what is found |\n|---|---|")
    for story in STORIES:
        print(f"| {story.told} | `{first.get(story.exhibit, 'not shown')}` |")


if __name__ == "__main__":
    main()
