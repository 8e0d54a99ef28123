"""Everything that makes a number for the docs: one function an item, one harness, one ledger."""
