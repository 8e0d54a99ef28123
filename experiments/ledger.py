"""The ledger: every number and data figure of the five papers, ours beside it, and a verdict.

`experiments/ledger.json` is a function of `papers/*/printed.py`, `figures.yaml` and the results
that are stored in `docs/results/` and `zoo/`, `docs/results/ledger.md` is a function of the ledger.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, final

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from experiments.causes import Change, changes_of, reason
from experiments.harness.provenance import ROOT
from experiments.harness.rows import line
from experiments.papers.kuzina2022.printed import TABLES, cell_of, printed
from experiments.papers.willetts2021.printed import PRINTED
from robustvae.training import Recipe, recipe_names

LEDGER, FIGURES = Path(__file__).parent / "ledger.json", Path(__file__).parent / "figures.yaml"
RESULTS = ROOT / "docs" / "results"
PAGE = RESULTS / "ledger.md"
PIXELS, GRAY = 28 * 28, 255**2  # the papers' MSE is in (0..255)^2 a pixel, ours is summed over them
CLEAN = "squared error, clean"
# A later one goes before: their own rule, first of all by the likelihood of their code.
CHAINS = ("HMC, restarted", "HMC, their rule", "HMC, their rule, clipped")

Verdict = Literal[
    "agrees",
    "off, cause measured",
    "off, unexplained",
    "contradicts itself",
    "impossible here",
    "not run",
    "cells",
]
RUN = ("agrees", "off, cause measured", "off, unexplained")
VERDICTS = (*RUN, "contradicts itself", "impossible here", "not run")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Ours(_Frozen):
    """What was measured here.

    Attributes:
        value: The number.
        error: Its standard error; with several draws of references the draws' spread is in it.
        n: Inputs, over all draws.
        draws: Of the references.
        seeds: Of those draws.
        model: By name.
        training: How long it was trained.
        chain: By which chain, where it is defended.
        command: That makes it again.
        commit: The code that made it.
        date: When.
    """

    value: float
    error: float
    n: int
    draws: int
    seeds: str
    model: str
    training: str
    chain: str = ""
    command: str
    commit: str
    date: str


@final
class Cell(_Frozen):
    """One number that a paper prints.

    Attributes:
        key: paper/table/row/column; prose cites a number by it.
        place: Where it stands, in words.
        value: As printed.
        error: As printed, None where there is none.
        ours: None where nothing was measured.
        z: Difference in combined standard errors.
        verdict: See `VERDICTS`.
        why: The reason, where the verdict wants one.
    """

    key: str
    place: str
    value: float
    error: float | None
    ours: Ours | None = None
    z: float | None = None
    verdict: Verdict
    why: str = ""


@final
class Figure(_Frozen):
    """One figure or table that carries data.

    Attributes:
        key: paper/figure.
        about: What it shows.
        item: That makes ours.
        page: Where ours is, below `docs/results`.
        picture: Ours, below `docs/img`.
        verdict: "cells" where the cells of a table say it.
        why: In a sentence.
    """

    key: str
    about: str
    item: str = ""
    page: str = ""
    picture: str = ""
    verdict: Verdict
    why: str = ""


@final
class Ledger(_Frozen):
    """All of it."""

    cells: tuple[Cell, ...]
    figures: tuple[Figure, ...]

    def cell(self, key: str) -> Cell:
        """The cell of a key.

        Raises:
            KeyError: No such cell.
        """
        by_key = {cell.key: cell for cell in self.cells}
        return by_key[key]

    def sums(self) -> dict[str, Counter[str]]:
        """Cells by paper and verdict, and by table of [Kuzina22]."""
        counts: dict[str, Counter[str]] = {}
        for cell in self.cells:
            paper, table, _ = cell.key.split("/", 2)
            for name in (f"{paper}, {table}", f"{paper}, all", "all"):
                counts.setdefault(name, Counter())[cell.verdict] += 1
        return dict(sorted(counts.items(), key=lambda pair: (pair[0] == "all", pair[0])))

    def to_json(self) -> str:
        """As the file has it."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def read() -> Ledger:
    """The ledger as stored."""
    return TypeAdapter(Ledger).validate_json(LEDGER.read_text("utf-8"))


def build() -> Ledger:
    """The ledger from what is printed and what is stored."""
    settled = yaml.safe_load(FIGURES.read_text("utf-8"))
    ours, changes = dict(_measured()), changes_of(RESULTS)
    cells = [
        _judged(key, place, value, error, ours.get(key), settled["causes"])
        for key, place, (value, error) in _printed()
    ]
    cells = [_explained(cell, changes.get(_once(cell.key), [])) for cell in cells]
    figures = [Figure(**figure) for figure in settled["figures"]]
    return Ledger(cells=tuple(cells), figures=tuple(figures))


def _printed() -> Iterator[tuple[str, str, tuple[float | None, float | None]]]:
    for table in TABLES:
        place = f"[Kuzina22] {table.replace('table-', 'Table ')}"
        for cell, numbers in printed(table).items():
            yield f"kuzina2022/{table}/{cell}", place, numbers
    yield "kuzina2022/fig-2/mnist/ks p", "[Kuzina22] section 4.1, Fig. 2", (0.029, None)
    for key, value in PRINTED.items():
        yield f"willetts2021/{key}", "[Willetts21] Table 1 and section 5", (value, None)


def _judged(
    key: str,
    place: str,
    value: float | None,
    error: float | None,
    ours: Ours | None,
    causes: Iterable[tuple[str, Any, str]],
) -> Cell:
    assert value is not None
    z, why = None, ""
    verdict: Verdict = "not run"
    if ours is not None:
        combined = math.hypot(ours.error, error or 0.0)
        z = round((ours.value - value) / combined, 2) if combined else None
        close = abs(z) <= 2 if z is not None else ours.value == value
        verdict = "agrees" if close else "off, unexplained"
    if verdict != "agrees":
        for pattern, settled, reason in causes:
            if fnmatch.fnmatchcase(key, pattern):
                fixed = settled in ("contradicts itself", "impossible here")
                if fixed or (ours is None) == (settled == "not run"):
                    verdict, why = settled, reason
                break
    return Cell(
        key=key, place=place, value=value, error=error, ours=ours, z=z, verdict=verdict, why=why
    )


def _once(key: str) -> str:
    """The key under which `kuzina2022/length` knows a cell that the paper prints twice."""
    for data, row, column in re.findall(r"table-2/(\w+)/(\w+)/(mse)", key):
        return f"kuzina2022/table-7/{row if row == 'vae' else f'{row}-2'}/{data}/{column}"
    for radius, row, data in re.findall(r"table-4/(0\.\d)/(\w+)/(\w+)/ms-ssim", key):
        return f"kuzina2022/table-2/{data}/{row}/ms-ssim {radius}"
    return key


def _explained(cell: Cell, changes: list[Change]) -> Cell:
    """A cell whose gap a measured change closes in part."""
    if cell.ours is None or cell.verdict != "off, unexplained":
        return cell
    gap = cell.value - cell.ours.value
    why = reason(changes, gap, cell.ours.training, is_loss=cell.key.endswith("/nll"))
    if not why:
        return cell
    return cell.model_copy(update={"verdict": "off, cause measured", "why": why})


def _measured() -> Iterator[tuple[str, Ours]]:
    yield from _old_strength()
    yield from _old_ratio()
    yield from _zoo()  # of more images than version 0.1 had
    yield from _short()
    # a later one replaces an earlier one
    for kind in ("strength", "rule", "undefended", "flip", "behind"):
        for path in sorted(RESULTS.glob(f"kuzina2022-{kind}-*.json"), key=lambda path: path.stem):
            yield from _strength(path)  # that of the paper's 300 epochs is the later name


def _short_trainings() -> dict[str, str]:
    """How long the models of `kuzina2022/short` were trained, by name."""
    pages = (json.loads(p.read_text("utf-8")) for p in RESULTS.glob("kuzina2022-short*.json"))
    return {
        row["what"]: page["facts"]["training"]
        for page in pages
        for row in page["rows"]
        if row["source"]
    }


def _short() -> Iterator[tuple[str, Ours]]:
    """Likelihood and error of models trained on for a share of an epoch."""
    for path in sorted(RESULTS.glob("kuzina2022-short*.json")):
        content = json.loads(path.read_text("utf-8"))
        for row in content["rows"]:
            is_bound = row["section"] == "minus the ELBO"  # the likelihood stands beside it
            if row["source"] is None or row["setting"] != "after" or is_bound:
                continue
            numbers = {"value": row["measured"], "error": row["stderr"], "n": row["n"]}
            ours = _of(content["facts"], row["what"], **_rounded(numbers))
            yield row["source"], ours
            for kind, data in re.findall(r"table-7/(\w+)-2/(\w+)/mse", row["source"]):
                yield f"kuzina2022/table-3/{data}/{kind}/mse", ours


def _of(facts: dict[str, Any], model: str, **numbers: Any) -> Ours:
    seeds = str(facts["seed"])
    return Ours(
        model=model,
        training=_training(model),
        seeds=seeds,
        draws=len(seeds.split(",")),
        command=facts.get("command", f"robustvae zoo train {model}"),
        commit=str(facts.get("commit", "121d41c")),
        date=facts["date"],
        **numbers,
    )


def _training(model: str) -> str:
    card = _card(model)
    if model in (short := _short_trainings()):
        return short[model]
    if card is None:
        if not model.startswith("color"):
            return "30 epochs"
        epochs = Recipe.read(model).training.epochs
        return f"{epochs} epoch{'s' * (epochs > 1)} of 420,000 images"
    start = Recipe.read(model).start if model in recipe_names() else None
    before = f"{_training(start).split()[0]} + " if start else ""
    return f"{before}{card['epochs']} epochs"


def _card(model: str) -> dict[str, Any] | None:
    """The card of a stored model, or of one whose record alone is kept."""
    for name in ("config.json", "card.json"):
        path = ROOT / "zoo" / model / name
        if path.is_file():
            content = json.loads(path.read_text("utf-8"))
            card: dict[str, Any] = content.get("card", content)
            return card
    return None


def _strength(path: Path) -> Iterator[tuple[str, Ours]]:
    content = json.loads(path.read_text("utf-8"))
    model = _model_of(content["facts"]["command"])
    for row in content["rows"]:
        defended = row["what"] in CHAINS
        if not defended and (row["what"] != "undefended" or "-behind-" in path.stem):
            continue
        numbers = {"value": row["measured"], "error": row["stderr"], "n": row["n"]}
        chain = row["what"] if defended else ""
        ours = _of(content["facts"], model, chain=chain, **_rounded(numbers))
        if row["source"] is not None:
            yield row["source"], ours
            yield from _repeated(row["source"], ours)
        elif defended and row["setting"] == CLEAN:
            key = cell_of(model, "HMC", "accuracy, clean")
            if key is not None and "/color/" not in key:
                scaled = {k: v * GRAY / PIXELS for k, v in numbers.items() if k != "n"}
                more = _rounded(scaled | {"n": row["n"]})
                ours = _of(content["facts"], model, chain=chain, **more)
                yield key.replace("accuracy 0", "mse"), ours


def _model_of(command: str) -> str:
    """The model that a command of `kuzina2022/strength` names, or the item's own."""
    named = re.search(r" model=(\S+)", command)
    return Path(named[1]).name if named else "mnist-conv28"


def _repeated(key: str, ours: Ours) -> Iterator[tuple[str, Ours]]:
    """Table 4 prints cells of Tables 2 and 3 once more."""
    _, table, data, row, column = key.split("/") if key.count("/") == 4 else ("",) * 5
    what, _, radius = column.rpartition(" ")
    if table in ("table-2", "table-3") and radius in ("0.1", "0.2"):
        yield f"kuzina2022/table-4/{radius}/{row}/{data}/{what}", ours


def _old_strength() -> Iterator[tuple[str, Ours]]:
    """What version 0.1 measured on one draw of 50 images; no ColorMNIST model is stored."""
    for model, labels, name in (
        ("color-mnist-conv28", "digit", "color-mnist"),
        ("color-mnist-conv28", "color", "color-mnist-label-color"),
        ("fashion-conv28", None, "fashion-mnist"),
    ):
        content = json.loads((RESULTS / f"defense-strength-{name}.json").read_text("utf-8"))
        data = model.split("-")[0]
        gray = GRAY / PIXELS / (3 if data == "color" else 1)
        for row in content["rows"]:
            if row["setting"] == CLEAN and row["what"] in ("posterior sample", "HMC, restarted"):
                scaled = {"value": gray * row["measured"], "error": gray * row["stderr"]}
                chain = "" if row["what"] == "posterior sample" else row["what"]
                more = _rounded(scaled | {"n": row["n"]})
                ours = _of(content["facts"], model, chain=chain, **more)
                table = 3 if data == "color" else 2
                yield f"kuzina2022/table-{table}/{data}/vae{'+hmc' * bool(chain)}/mse", ours
                if not chain:
                    yield f"kuzina2022/table-7/vae/{data}/mse", ours
            elif row["what"] in ("undefended", *CHAINS):
                key = cell_of(model, row["what"], row["setting"], labels)
                if key is not None:
                    numbers = {"value": row["measured"], "error": row["stderr"], "n": row["n"]}
                    chain = row["what"] if row["what"] in CHAINS else ""
                    ours = _of(content["facts"], model, chain=chain, **_rounded(numbers))
                    yield key, ours
                    yield from _repeated(key, ours)


def _old_ratio() -> Iterator[tuple[str, Ours]]:
    content = json.loads((RESULTS / "defense-ratio-mnist.json").read_text("utf-8"))
    row = next(r for r in content["rows"] if (r["what"], r["setting"]) == ("HMC", "p value"))
    numbers = {"value": row["measured"], "error": 0.0, "n": row["n"]}
    yield "kuzina2022/fig-2/mnist/ks p", _of(content["facts"], "mnist-conv28", **numbers)


def _zoo() -> Iterator[tuple[str, Ours]]:
    """Likelihood and error of the stored models; the papers' error is that of a draw's code."""
    kinds = [f"{kind}-{n}" for kind in ("beta", "tc") for n in (2, 5, 10)]
    suffixes = {"": "vae", **{f"-{kind}": kind for kind in kinds}, "-300": "vae"}
    for suffix, row in suffixes.items():  # a later one replaces an earlier one
        for data in ("mnist", "fashion"):
            model = f"{data}-conv28{suffix}"
            folder = ROOT / "zoo" / model
            if not (folder / "evaluation.json").is_file():
                continue
            content = json.loads((folder / "evaluation.json").read_text("utf-8"))
            card = _card(model)
            assert card is not None
            weights = content["facts"]["sha256"][:12]
            facts = {"seed": 0, "date": card["date"], "commit": f"weights {weights}"}
            measures = {measure["key"]: measure for measure in content["measures"]}
            # the paper's likelihood is that of all test images: ours is carried over to them
            for key, column in (("nll_all", "nll"), ("mse_sampled", "mse")):
                found = measures[key]
                numbers = {"value": found["value"], "error": found["stderr"], "n": found["n"]}
                ours = _of(facts, model, **_rounded(numbers))
                yield f"kuzina2022/table-7/{row}/{data}/{column}", ours
                kind = row.removesuffix("-2")
                if column == "mse" and kind in ("vae", "beta", "tc"):
                    yield f"kuzina2022/table-2/{data}/{kind}/mse", ours


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: n if key == "n" else float(f"{n:.5g}") for key, n in numbers.items()}


_MARK = "# needs data and time, as this page says"  # no test runs it: a reader sees why


def page(ledger: Ledger) -> str:
    """The page of the ledger, in markdown."""
    lines = [
        "# The ledger",
        "",
        "```sh",
        _MARK,
        "python -m experiments ledger --write",
        "```",
        "",
        "Every number and every data figure that the five papers print, ours beside it. *Agrees*: "
        "within two combined standard errors. A cell is cited by its key. One training run a "
        "model; its length stands beside it (the papers: 300 epochs). Length counts as a measured "
        "cause where more epochs move the number by three standard errors and a tenth of the gap, "
        "and so does another estimate of the total correlation; "
        "the rest of the gap is extrapolated. HMC: by their rule and the clipped likelihood of "
        "their code where it was run (the chain stands beside the model), elsewhere our restarted "
        "chain, which is not theirs. ColorMNIST: undefended similarities are those of drawn codes, "
        "unclipped, as their code takes them; models of one epoch, and of an eighth of one more by "
        "their own objectives. Similarities behind HMC and the plain model's error are those of "
        "version 0.1, six epochs and one draw of 50.",
        "",
        _unique(ledger),
        "",
        "## Sums",
        "",
        line(["cells", "printed", *VERDICTS, "of those that can be run, run"]),
        line(["---", *["---:"] * (2 + len(VERDICTS))]),
    ]
    for name, counts in ledger.sums().items():
        total, run = sum(counts.values()), sum(counts[verdict] for verdict in RUN)
        can = total - counts["impossible here"] - counts["contradicts itself"]
        share = f"{run / can:.0%}" if can else "-"
        lines.append(line([name, str(total), *(str(counts[v]) for v in VERDICTS), share]))
    judged = Counter(figure.verdict for figure in ledger.figures)
    lines += [
        "",
        f"Figures and tables: {len(ledger.figures)}; "
        + ", ".join(f"{verdict} {count}" for verdict, count in sorted(judged.items()))
        + " (their cells are above).",
        "",
        "## Figures",
        "",
        line(["figure", "shows", "verdict", "", "ours"]),
        line(["---"] * 5),
    ]
    for figure in ledger.figures:
        link = f"[{figure.page}]({figure.page})" if figure.page else ""
        picture = f"[picture](../img/{figure.picture})" if figure.picture else ""
        parts = [f"`{figure.item}`" if figure.item else "", link, picture]
        ours = " ".join(part for part in parts if part)
        lines.append(line([figure.key, figure.about, figure.verdict, figure.why, ours]))
    for paper, cells in _by_table(ledger).items():
        lines += ["", f"## {paper}", "", _said(cells), "", *_as_printed(cells), ""]
        lines.append(
            line(["cell", "printed", "ours", "n", "draws", "model", "z", "verdict", "why"])
        )
        lines.append(line(["---", *["---:"] * 4, "---", "---:", "---", "---"]))
        lines += [line(_shown(cell)) for cell in cells]
    reasons = Counter(
        (cell.verdict, cell.why)
        for cell in ledger.cells
        if cell.verdict in ("not run", "impossible here")
    )
    lines += ["", "## Not run, or impossible here", ""]
    lines += [line(["cells", "verdict", "why"]), line(["---:", "---", "---"])]
    for (verdict, why), count in reasons.most_common():
        lines.append(line([str(count), verdict, why]))
    commands = dict.fromkeys(cell.ours.command for cell in ledger.cells if cell.ours)
    lines += ["", "## Commands", "", "```sh", _MARK, *commands, "```"]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def with_figures(text: str, name: str, figures: Iterable[Figure]) -> str:
    """A page of results, with verdict, reason and picture of each figure that it is of, on top.

    Args:
        text: The page, in markdown; what an earlier call put in is replaced.
        name: Of the page, below `docs/results`.
        figures: Of the ledger.

    Examples:
        >>> from experiments.ledger import read, with_figures
        >>> page = with_figures("# Title\\n\\nText.\\n", "kuzina2022-radii.md", read().figures)
        >>> with_figures(page, "kuzina2022-radii.md", read().figures) == page
        True
    """
    text = re.sub(f"{BEGIN}\n.*?{END}\n\n", "", text, flags=re.DOTALL)
    shown, lines = set[str](), list[str]()
    for figure in figures:
        if figure.page != name or figure.verdict == "cells":
            continue
        why = figure.why.rstrip(".")
        said = f"{_cited(figure.key)}, {figure.about}: **{figure.verdict}**. "
        lines += [f"{said}{why[:1].upper()}{why[1:]}.", ""]
        if figure.picture and figure.picture not in text and figure.picture not in shown:
            shown.add(figure.picture)
            lines += [
                f"![{figure.about[:1].upper()}{figure.about[1:]}](../img/{figure.picture})",
                "",
            ]
    if not lines:
        return text
    title, _, rest = text.partition("\n\n")
    return "\n".join([title, "", BEGIN, *lines, END, "", rest])


def _cited(key: str) -> str:
    """A figure's key as prose cites it."""
    paper, kind, name = re.split("[/-]", key)
    kinds = {"fig": "Fig. ", "table": "Table ", "appendix": "appendix "}
    name = re.sub(r"([A-Z])(\d)", r"\1.\2", name.upper())
    return f"[{paper[:1].upper()}{paper[1:-4]}{paper[-2:]}] {kinds[kind]}{name}"


def pages(ledger: Ledger) -> dict[Path, str]:
    """Every page that the ledger decides, by path: its own, and results with their verdicts."""
    contents = {PAGE: page(ledger)}
    pages_of = {figure.page for figure in ledger.figures}
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text("utf-8")
        if path.name in pages_of or BEGIN in text:  # once of a figure that has another page now
            contents[path] = with_figures(text, path.name, ledger.figures)
    return contents


def _unique(ledger: Ledger) -> str:
    """The sums without the cells that Table 4 prints a second time."""
    repeats = re.compile(r"table-4/0\.\d/(vae|vae\+hmc|beta|tc)/")
    once = [cell for cell in ledger.cells if not repeats.search(cell.key)]
    can = [c for c in once if c.verdict not in ("impossible here", "contradicts itself")]
    run = [cell for cell in can if cell.verdict in RUN]
    told = sum(cell.verdict != "off, unexplained" for cell in run)
    return (
        f"Table 4 repeats cells of Tables 2 and 3. Without the repeats {len(once)} are printed, "
        f"{len(can)} can be run here, {len(run)} were ({len(run) / len(can):.1%}), and of those "
        f"{told} agree or have a measured cause ({told / len(run):.1%})."
    )


def _by_table(ledger: Ledger) -> dict[str, list[Cell]]:
    tables: dict[str, list[Cell]] = {}
    for cell in ledger.cells:
        if cell.verdict not in ("not run", "impossible here"):
            tables.setdefault("/".join(cell.key.split("/")[:2]), []).append(cell)
    return tables


def _said(cells: list[Cell]) -> str:
    """The verdict on a table, in a sentence."""
    counts = Counter(cell.verdict for cell in cells)
    words: dict[Verdict, str] = {
        "agrees": "agree",
        "off, cause measured": "are off with a measured cause",
        "off, unexplained": "are off and unexplained",
        "contradicts itself": "contradict each other in the paper",
    }
    told = [f"{counts[verdict]} {words[verdict]}" for verdict in words if counts[verdict]]
    return f"Of {len(cells)} cells that were run or contradict each other, {', '.join(told)}."


def _as_printed(cells: list[Cell]) -> list[str]:
    """The rows and columns of the paper: its value above, ours below it, bold where it agrees."""
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        _, table, place = cell.key.split("/", 2)
        cut = 1 if table in ("table-7", "fig-2") else 2
        names = place.split("/")
        if len(names) <= cut or cell.ours is None:
            continue
        error = "" if cell.error is None else f" ({cell.error:g})"
        value = f"{cell.ours.value:.4g} ± {cell.ours.error:.2g}"
        value = f"**{value}**" if cell.verdict == "agrees" else value
        row, column = "/".join(names[:cut]), "/".join(names[cut:])
        rows.setdefault(row, {})[column] = f"{cell.value:g}{error}<br>{value}"
    if not rows:
        return []
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    head = "The paper's numbers as it lays them out, ours below them; bold ones agree."
    lines = [head, "", line(["", *columns]), line(["---", *["---:"] * len(columns)])]
    return lines + [line([row, *(rows[row].get(c, "") for c in columns)]) for row in rows]


def _shown(cell: Cell) -> list[str]:
    error = "" if cell.error is None else f" ({cell.error:g})"
    shown = [f"`{cell.key.split('/', 2)[2]}`", f"{cell.value:g}{error}"]
    ours = cell.ours
    if ours is None:
        return [*shown, "", "", "", "", "", cell.verdict, cell.why]
    spread = f" ± {ours.error:.2g}" if ours.error else ""
    z = "" if cell.z is None else f"{cell.z:+.1f}"
    model = ", ".join(part for part in (ours.model, ours.training, ours.chain) if part)
    numbers = [f"{ours.value:.4g}{spread}", f"{ours.n:,}", str(ours.draws), model, z]
    return [*shown, *numbers, cell.verdict, cell.why]


def places() -> dict[str, dict[str, set[str]]]:
    """The places of each paper that a citation may name: kind to names."""
    listed = yaml.safe_load(FIGURES.read_text("utf-8"))["places"]
    return {
        paper: {kind: set(_names(names)) for kind, names in kinds.items()}
        for paper, kinds in listed.items()
    }


def _names(names: Any) -> Iterator[str]:
    if isinstance(names, dict):
        names = range(names["from"], names["to"] + 1)
    yield from (str(name) for name in names)
