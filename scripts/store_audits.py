"""Keep what audits say of the zoo's models beside their cards: zoo/NAME/audit.json.

    robustvae audit NAME --protocol mnist-l2-v1 --out audits/NAME
    python scripts/store_audits.py audits/NAME ...

The model is the one that the record names (`--name` says it for a run's folder). Only audits of a
protocol are kept; one that was shortened says by how many inputs.
"""

from __future__ import annotations

import json
import sys

from robustvae import zoo
from robustvae.records import write_files
from robustvae.report.files import read
from robustvae.zoo_table import AUDIT, audit_facts


def main(folders: list[str]) -> None:
    for folder in folders:
        record = read(folder)
        place = zoo.measured()[record.model.name]
        text = json.dumps(audit_facts(record), indent=2, sort_keys=True) + "\n"
        write_files({place / AUDIT: text.encode()})
        print(place / AUDIT)


if __name__ == "__main__":
    main(sys.argv[1:])
