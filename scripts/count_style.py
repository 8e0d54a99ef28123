"""Count what the house's style limits, from the syntax trees; exit with 1 above a limit.

    python scripts/count_style.py            # the figures, and where a limit is not kept
    python scripts/count_style.py --names    # and every name that is not a noun, by file
    python scripts/count_style.py --json     # the figures alone

Every limit is a number in LIMITS, so that a change of it shows in a diff.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "robustvae"

FUNCTIONS = "functions with 8 or more arguments"
LONGEST = "lines of the longest module"
PARTICIPLES = "participles among assigned names, %"
COMMENTS = "comment lines per 1,000 in each place of numerical code"
CYCLES = "import cycles"
PHRASES = "unclear phrases in messages, docstrings and comments"
TEST_NAMES = "test names of fewer than 3 or more than 6 words"
LIMITS = {
    FUNCTIONS: ("at most", 8),
    LONGEST: ("at most", 600),
    PARTICIPLES: ("at most", 1.0),
    COMMENTS: ("at least", 20.0),
    CYCLES: ("at most", 0),
    PHRASES: ("at most", 0),
    TEST_NAMES: ("at most", 0),
}

# Phrases that a reader must puzzle over, each with what to write in its place. "There is no X" and
# "no larger than" are clear; "an X that is no Y" is not.
PHRASE_RULES = {
    r"(?<![Tt]here )\b(?:is|are|was|were|be) no (?!more\b|less\b|worse\b|\w+er\b)\w+": (
        "must be, or: is not a"
    ),
    r"^(?:Refuse|Told)\b": "Validate, Called, Return: open with what it does",
    r"\b[Tt]he disk refused": "the disk cannot be written",
    r"\bat rest\b": "without attack",
    r"\bout of sight\b": "not accessible",
    r"\bhonest score\b": "score recomputed",
    r"\bseeing beats transfer\b": "adaptive attack at least as strong as transfer",
    r"\bquiet minutes\b": "low load",
    r"\bhas not arrived\b": "has not converged",
    r"\bcompared with nobody": "cannot be compared",
}

# Numerical code, where a reader needs the reason of every constant, order and fallback.
NUMERICAL = ("perturb", "certificates", "robustness", "mcmc", "bounds")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Past participles and other words that say nothing of the thing that they name.
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
    """Whether a name is a participle, or another word that is not a noun."""
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


def texts(path: Path) -> Iterator[tuple[str, int]]:
    """Every piece of text that a person may read, with its line: strings, docstrings, comments."""
    with tokenize.open(path) as file:
        source = file.read()
    inside = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            parts = [
                value.value if isinstance(value, ast.Constant) else "{}" for value in node.values
            ]
            yield "".join(map(str, parts)), node.lineno
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield str(node.value), node.lineno
    for token in tokenize.generate_tokens(iter(source.splitlines(True)).__next__):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# "), token.start[0]


def unclear_phrases(text: str) -> list[str]:
    """The phrases of a text that PHRASE_RULES name."""
    line = " ".join(text.split())
    return [match[0] for rule in PHRASE_RULES for match in re.finditer(rule, line)]


def odd_test_names(text: str) -> list[str]:
    """Tests of a file whose names are too short to say what, or too long to read."""
    names = re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)
    return [name for name in names if not 3 <= name.count("_") <= 6]


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
    assigned, lengths = 0, {}
    for name, tree in trees.items():
        path = files[name].relative_to(folder.parent)
        places[FUNCTIONS] += [f"{path}: {what}, {n}" for what, n in long_functions(tree)]
        lengths[str(path)] = len(files[name].read_text(encoding="utf-8").splitlines())
        for word, line in assigned_names(tree):
            assigned += 1
            if is_participle(word):
                places[PARTICIPLES].append(f"{path}:{line}: {word}")
        places[PHRASES] += [
            f"{path}:{line}: {phrase}"
            for text, line in texts(files[name])
            for phrase in unclear_phrases(text)
        ]
    limit = LIMITS[LONGEST][1]
    places[LONGEST] = [f"{path}: {n}" for path, n in lengths.items() if n > limit]
    written: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for name, path in files.items():
        part = (*name.split("."), "")[1]
        if part in NUMERICAL:
            comment_count, line_count = comment_lines(path)
            written[part] += comment_count
            lines[part] += line_count
            place = path.relative_to(folder.parent)
            places[COMMENTS].append(f"{place}: {comment_count} in {line_count}")
    places[CYCLES] = cycles({name: imports(name, trees[name], set(files)) for name in files})
    tests = ROOT / "tests" if folder == PACKAGE else folder.parent / "tests"
    for path in sorted(tests.rglob("test_*.py")):
        places[TEST_NAMES] += [
            f"{path.relative_to(tests.parent)}: {name}"
            for name in odd_test_names(path.read_text(encoding="utf-8"))
        ]
    return {
        FUNCTIONS: len(places[FUNCTIONS]),
        LONGEST: max(lengths.values()),
        PARTICIPLES: round(100 * len(places[PARTICIPLES]) / max(1, assigned), 2),
        # of the poorest place: a rich one must not stand in for another
        COMMENTS: round(min((1000 * written[part] / lines[part] for part in lines), default=0), 1),
        CYCLES: len(places[CYCLES]),
        PHRASES: len(places[PHRASES]),
        TEST_NAMES: len(places[TEST_NAMES]),
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
    words = Counter(place.rpartition(" ")[2] for place in places[PARTICIPLES])
    print("most frequent:", ", ".join(f"{word} {n}" for word, n in words.most_common(12)))
    return int(not all(is_kept(key, value) for key, value in figures.items()))


if __name__ == "__main__":
    sys.exit(main())
