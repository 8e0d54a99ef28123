"""Keep what audits say of the zoo's models beside their cards, and write the cards anew.

    robustvae audit NAME --protocol mnist-l2-v1 --out audits/NAME
    python scripts/store_audits.py audits/NAME ...   # zoo/NAME/audit.json and all zoo/*/README.md
    python scripts/store_audits.py                   # the cards only

The model is the one that the record names (`--name` says it for a run's folder). Only audits of a
protocol are kept; one that was shortened says by how many inputs.
"""

from __future__ import annotations

import json
import sys

from robustvae import zoo
from robustvae.records import write_files
from robustvae.report.files import read
from robustvae.zoo_table import audit_facts, card_page


def main(folders: list[str]) -> None:
    for folder in folders:
        record = read(folder)
        place = zoo.measured()[record.model.name]
        text = json.dumps(audit_facts(record), indent=2, sort_keys=True) + "\n"
        write_files({place / zoo.AUDIT: text.encode()})
        print(place / zoo.AUDIT)
    for name, place in zoo.measured().items():
        write_files({place / zoo.CARD: card_page(name).encode()})


if __name__ == "__main__":
    main(sys.argv[1:])
