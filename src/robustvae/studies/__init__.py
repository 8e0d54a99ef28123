"""Studies: one file is one published table or figure."""
