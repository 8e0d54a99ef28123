"""Audits at the end of epochs of a loop of your own, logged as lines of JSON."""

from types import SimpleNamespace

import robustvae as rv
from robustvae.callbacks import EpochAudit
from robustvae.loggers import JSONLines

vae = rv.load("digits-vae")  # any module that rv.wrap knows
plan = {"base": "smoke", "margins": None, "certificates": False, "geometry": False}
epoch_audit = EpochAudit(
    rv.data.load("digits", split="test"),
    plan=plan,
    question={"r": 0.86},
    every=2,
    logger=JSONLines("log.jsonl"),
)
for epoch in range(4):
    # ... train an epoch ...
    epoch_audit.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), vae)
for epoch, record in epoch_audit.records.items():
    print(epoch, record.verdict.first)
