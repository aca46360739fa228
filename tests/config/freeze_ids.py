"""Add run ids to frozen_ids.json: `PYTHONPATH=src python tests/config/freeze_ids.py [SCALE ...]`.

Without a scale: demo. Entries are only added. What was never published may be
dropped by deleting the file before the call; a published id stays for ever.
"""

import json
import sys
from pathlib import Path

from peregrine.config.identity import canonical
from peregrine.config.load import load

FROZEN = Path(__file__).with_name("frozen_ids.json")


def main(scales: list[str]) -> None:
    entries = json.loads(FROZEN.read_text()) if FROZEN.exists() else []
    frozen = {entry["id"]: entry for entry in entries}
    for scale in scales:
        for name, run in load(Path(__file__).parents[2] / "config", scale=scale).runs().items():
            short = json.loads(canonical(run))
            spelled_out = run.model_dump(mode="json")
            frozen.setdefault(name, {"id": name, "canonical": short, "configuration": spelled_out})
    lines = ",\n".join(json.dumps(frozen[name], sort_keys=True) for name in sorted(frozen))
    FROZEN.write_text(f"[\n{lines}\n]\n")
    print(f"{FROZEN}: {len(frozen)} ids, {len(frozen) - len(entries)} of them new")


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo"])
