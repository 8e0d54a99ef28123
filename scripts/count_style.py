"""Count what the house's style limits, from the syntax trees; exit with 1 above a limit.

    python scripts/count_style.py            # the figures, and where a limit is not kept
    python scripts/count_style.py --names    # and every name that is no noun, by file
    python scripts/count_style.py --json     # the figures alone

Every limit is a number in LIMITS, so that a change of it shows in a diff.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import json
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "robustvae"

LIMITS = {
    "functions with 8 or more arguments": ("at most", 8),
    "lines of the longest module": ("at most", 600),
    "participles among assigned names, %": ("at most", 1.0),
    "comment lines per 1,000 in numerical code": ("at least", 20.0),
    "import cycles": ("at most", 0),
}

# Numerical code, where a reader needs the reason of every constant, order and fallback.
NUMERICAL = ("perturb", "certificates", "robustness", "mcmc", "bounds")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Past participles and other words that are no nouns and say nothing of the thing that they name.
IRREGULAR = _words(
    "begun bent borne bought broken brought built caught chosen done drawn driven fallen fed felt "
    "forgotten found given gone gotten got grown heard held kept known laid led lent lost made "
    "meant met paid put said seen sent shown shut sold sought spent spoken spun stood stuck struck "
    "sunk taken taught thrown told torn understood woken won worn woven written began "
    "across apart here own most rest whole whatever"
)
# Words in -ed that are nouns, or the field's usual name of a thing: a term, not a description.
TERMS = _words(
    "seed need feed speed embed accepted attacked batched certified colored decoded expected "
    "measured padded parsed rectified reported scaled signed squared stacked unrolled"
)


def modules(folder: Path = PACKAGE) -> dict[str, Path]:
    """Every module under a package, by its full name."""
    files = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def long_functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions with 8 or more arguments, `self` not counted, with how many."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            count += (node.args.vararg is not None) + (node.args.kwarg is not None)
            if count >= 8:
                yield node.name, count


def assigned_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that is bound by an assignment, a loop or a `with`, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def is_participle(name: str) -> bool:
    """Whether a name is a participle, or another word that is no noun."""
    word = name.strip("_")
    return word in IRREGULAR or (
        word.endswith("ed") and "_" not in word and word.islower() and word not in TERMS
    )


def comment_lines(path: Path) -> tuple[int, int]:
    """Comment lines, and lines that are not empty."""
    with tokenize.open(path) as file:
        text = file.read()
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(iter(text.splitlines(True)).__next__)
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:"))
    }
    return len(comments), sum(bool(line.strip()) for line in text.splitlines())


def imports(name: str, tree: ast.Module, names: set[str]) -> set[str]:
    """The package's own modules that a module imports when it is imported itself."""
    targets: set[str] = set()
    for node in tree.body:  # imports inside functions wait, and close no circle
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= (full & names) or {node.module or ""}
    return (targets & names) - {name}


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """The first circle of imports, if there is one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def count(folder: Path = PACKAGE) -> tuple[dict[str, float], dict[str, list[str]]]:
    """The figures that LIMITS names, and for each the places that make it up."""
    files = modules(folder)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    places: dict[str, list[str]] = {key: [] for key in LIMITS}
    functions, longest, participles, cycle = (key for key in LIMITS if "comment" not in key)
    comments = next(key for key in LIMITS if "comment" in key)
    assigned, lengths = 0, {}
    for name, tree in trees.items():
        path = files[name].relative_to(folder.parent)
        places[functions] += [f"{path}: {what}, {n}" for what, n in long_functions(tree)]
        lengths[str(path)] = len(files[name].read_text(encoding="utf-8").splitlines())
        for word, line in assigned_names(tree):
            assigned += 1
            if is_participle(word):
                places[participles].append(f"{path}:{line}: {word}")
    limit = LIMITS[longest][1]
    places[longest] = [f"{path}: {n}" for path, n in lengths.items() if n > limit]
    written, lines = 0, 0
    for name, path in files.items():
        if name.split(".")[1:2] and name.split(".")[1] in NUMERICAL:
            comment_count, line_count = comment_lines(path)
            written, lines = written + comment_count, lines + line_count
            place = path.relative_to(folder.parent)
            places[comments].append(f"{place}: {comment_count} in {line_count}")
    places[cycle] = cycles({name: imports(name, trees[name], set(files)) for name in files})
    return {
        functions: len(places[functions]),
        longest: max(lengths.values()),
        participles: round(100 * len(places[participles]) / max(1, assigned), 2),
        comments: round(1000 * written / max(1, lines), 1),
        cycle: len(places[cycle]),
    }, places


def is_kept(key: str, value: float) -> bool:
    """Whether a figure keeps its limit."""
    side, limit = LIMITS[key]
    return value <= limit if side == "at most" else value >= limit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", action="store_true", help="print every place, not the first few")
    parser.add_argument("--json", action="store_true", help="print the figures alone, as JSON")
    parser.add_argument("--source", type=Path, default=PACKAGE, help="another package's folder")
    options = parser.parse_args(arguments)
    figures, places = count(options.source.resolve())
    if options.json:
        print(json.dumps(figures, indent=1))
        return int(not all(is_kept(key, value) for key, value in figures.items()))
    for key, value in figures.items():
        side, limit = LIMITS[key]
        mark = "ok  " if is_kept(key, value) else "OVER"
        print(f"{mark}  {value:g}  {key} ({side} {limit:g})")
        if options.names or not is_kept(key, value):
            lines = places[key] if options.names else places[key][:20]
            print("".join(f"          {line}\n" for line in lines), end="")
    words = Counter(place.rpartition(" ")[2] for place in places[list(LIMITS)[2]])
    print("most frequent:", ", ".join(f"{word} {n}" for word, n in words.most_common(12)))
    return int(not all(is_kept(key, value) for key, value in figures.items()))


if __name__ == "__main__":
    sys.exit(main())
