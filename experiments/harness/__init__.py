"""The harness: items, their runs, the store of finished parts, rows and tables, provenance."""

from experiments.harness.item import ITEMS, Item, Run, item, load_items
from experiments.harness.rows import Result, Row, combine, interval
from experiments.harness.store import Store, Unfinished

__all__ = [
    "combine",
    "interval",
    "Item",
    "item",
    "ITEMS",
    "load_items",
    "Result",
    "Row",
    "Run",
    "Store",
    "Unfinished",
]
