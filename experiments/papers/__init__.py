"""One folder a paper, one file an item or a few that belong together."""
