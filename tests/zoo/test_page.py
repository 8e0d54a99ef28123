"""What docs/zoo.md shows is what runs."""

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[2] / "docs"


def test_the_python_of_the_page_runs(capsys):
    torch.set_default_dtype(torch.float32)  # what a user has
    block = re.search(r"```python\n(.*?)```", (DOCS / "zoo.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    exec(compile(block[1], "zoo.md", "exec"), {})
    assert 20 < float(capsys.readouterr().out.split()[0]) < 30
