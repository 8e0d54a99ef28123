"""The numbers that [Kuzina22] prints: Tables 2 to 5 and 7, value and standard error."""

from __future__ import annotations

import re

Printed = dict[str, tuple[float | None, float | None]]
"""Value and standard error, None where the paper has N/A or no error, by place in the paper."""

STRENGTH = ("ms-ssim 0.1", "ms-ssim 0.2", "accuracy 0", "accuracy 0.1", "accuracy 0.2", "mse")
COLOR = (
    *("ms-ssim 0.1", "ms-ssim 0.2"),
    *(f"{kind} accuracy {radius}" for kind in ("digit", "color") for radius in ("0", "0.1", "0.2")),
    *("mse", "fid"),
)
SETS = ("mnist", "fashion", "color")
EXTENDED = (
    *(f"{data}/ms-ssim" for data in SETS),
    *("mnist/accuracy", "fashion/accuracy", "color/digit accuracy", "color/color accuracy"),
)
QUALITY = (
    *(f"{data}/{what}" for data in SETS for what in ("nll", "mse")),
    "color/fid",
)

TABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "table-2": (
        STRENGTH,
        """
        mnist/vae       0.70 (0.02) 0.36 (0.03) 0.90 (0.04) 0.08 (0.04) 0.05 (0.03) 578.7
        mnist/vae+hmc   0.88 (0.01) 0.76 (0.02) 0.76 (0.01) 0.25 (0.03) 0.19 (0.03) 478.1
        mnist/beta      0.75 (0.01) 0.50 (0.03) 0.90 (0.05) 0.11 (0.04) 0.01 (0.01) 824.2
        mnist/tc        0.70 (0.02) 0.46 (0.03) 0.86 (0.05) 0.05 (0.03) 0.03 (0.02) 828.4
        fashion/vae     0.59 (0.03) 0.47 (0.03) 0.78 (0.06) 0.00 (0.01) 0.01 (0.01) 814.2
        fashion/vae+hmc 0.66 (0.03) 0.54 (0.03) 0.56 (0.01) 0.14 (0.02) 0.13 (0.02) 764.2
        fashion/beta    0.52 (0.03) 0.41 (0.03) 0.80 (0.05) 0.00 (0.01) 0.00 (0.01) 1021.1
        fashion/tc      0.52 (0.03) 0.42 (0.03) 0.84 (0.05) 0.00 (0.01) 0.02 (0.02) 980.4
        """,
    ),
    "table-3": (
        COLOR,
        """
        color/vae     0.36 (0.03) 0.19 (0.02) 1.00 (0.00) 0.04 (0.03) 0.02 (0.02)
                      1.00 (0.00) 0.06 (0.03) 0.06 (0.03) 261 2.1
        color/vae+hmc 0.96 (0.01) 0.90 (0.01) 0.42 (0.01) 0.16 (0.02) 0.11 (0.02)
                      1.00 (0.00) 0.68 (0.03) 0.62 (0.03) 206 2.1
        color/beta    0.75 (0.01) 0.5 (0.03) 0.88 (0.04) 0.08 (0.04) 0.05 (0.03)
                      1.00 (0.00) 0.21 (0.06) 0.18 (0.05) 366 2.4
        color/tc      0.35 (0.02) 0.23 (0.02) 0.94 (0.04) 0.08 (0.04) 0.05 (0.03)
                      1.00 (0.00) 0.06 (0.03) 0.05 (0.02) 366 3.0
        color/se-0.1      N/A N/A 0.94 0.89 0.02 1.00 1.00 0.22 1372 13.0
        color/se-0.2      N/A N/A 0.95 0.92 0.87 1.00 1.00 1.00 1375 11.7
        color/avae        N/A N/A 0.97 0.88 0.55 1.00 1.00 0.88 1372 15.5
        color/se-0.1-avae N/A N/A 0.97 0.94 0.25 1.00 1.00 0.60 1373 13.9
        color/se-0.2-avae N/A N/A 0.98 0.94 0.80 1.00 1.00 0.83 1374 13.9
        color/avae-ss     N/A N/A 0.94 0.73 0.21 1.00 1.00 0.57 1379 12.4
        """,
    ),
    "table-4": (
        EXTENDED,
        """
        0.1/vae      0.70 (0.02) 0.59 (0.03) 0.36 (0.03)
                     0.08 (0.04) 0.00 (0.01) 0.04 (0.03) 0.06 (0.03)
        0.1/vae+hmc  0.88 (0.01) 0.66 (0.03) 0.96 (0.01)
                     0.25 (0.03) 0.14 (0.02) 0.16 (0.02) 0.68 (0.03)
        0.1/beta     0.75 (0.01) 0.52 (0.03) 0.50 (0.04)
                     0.11 (0.04) 0.00 (0.02) 0.08 (0.04) 0.21 (0.06)
        0.1/beta+hmc 0.84 (0.01) 0.64 (0.03) 0.92 (0.03)
                     0.30 (0.03) 0.13 (0.02) 0.14 (0.02) 0.66 (0.04)
        0.1/tc       0.70 (0.02) 0.52 (0.03) 0.35 (0.02)
                     0.05 (0.03) 0.01 (0.01) 0.08 (0.04) 0.06 (0.03)
        0.1/tc+hmc   0.79 (0.02) 0.66 (0.03) 0.96 (0.01)
                     0.25 (0.04) 0.13 (0.02) 0.22 (0.03) 0.81 (0.02)
        0.2/vae      0.36 (0.03) 0.47 (0.03) 0.19 (0.02)
                     0.05 (0.03) 0.01 (0.01) 0.02 (0.02) 0.06 (0.03)
        0.2/vae+hmc  0.76 (0.02) 0.54 (0.03) 0.90 (0.01)
                     0.19 (0.03) 0.13 (0.02) 0.11 (0.02) 0.62 (0.03)
        0.2/beta     0.50 (0.03) 0.41 (0.03) 0.38 (0.04)
                     0.01 (0.01) 0.00 (0.01) 0.05 (0.03) 0.18 (0.05)
        0.2/beta+hmc 0.69 (0.03) 0.50 (0.03) 0.87 (0.01)
                     0.16 (0.03) 0.12 (0.02) 0.15 (0.02) 0.56 (0.04)
        0.2/tc       0.45 (0.03) 0.42 (0.03) 0.20 (0.02)
                     0.03 (0.02) 0.02 (0.02) 0.05 (0.03) 0.05 (0.03)
        0.2/tc+hmc   0.65 (0.03) 0.52 (0.03) 0.87 (0.01)
                     0.16 (0.04) 0.11 (0.02) 0.14 (0.02) 0.72 (0.03)
        """,
    ),
    "table-5": (
        ("T=0", "T=100", "T=500", "T=1000"),
        """
        mnist  0.0001 0.0099 0.0505 0.1011
        color  0.0001 0.0110 0.0553 0.1111
        celeba 0.429 6.512 31.551 63.031
        """,
    ),
    "table-7": (
        QUALITY,
        """
        vae      88.3 578.6 232.8 814.3 54.87 261.3 2.09
        beta-2   89.3 824.2 234.1 1021.1 55.6 365.6 2.4
        beta-5   100.6 1485.1 241.8 1457.8 63.6 586.1 2.5
        beta-10  126.8 2498.9 248.7 1842.3 88.7 936.2 2.4
        tc-2     89.3 828.4 233.6 980.4 55.8 366.4 3.0
        tc-5     96.7 1325.4 238.2 1024.6 63.0 574.8 2.0
        tc-10    107.2 1686.1 247.5 1570.0 76.5 806.2 2.2
        """,
    ),
}

_ROW = re.compile(
    r"([a-z][\w.+-]*(?:/[\w.+-]+)?|0\.[12]/[\w+]+)\s+(.*?)(?=\n\s*(?:[a-z]|0\.[12]/)|\Z)", re.S
)
_CELL = re.compile(r"(N/A|-?[\d.]+)(?: \(([\d.]+)\))?")


def printed(name: str) -> Printed:
    """The cells of one table by `row/column`; without those that the paper has as N/A.

    Examples:
        >>> from experiments.papers.kuzina2022.printed import printed
        >>> printed("table-2")["mnist/vae/ms-ssim 0.2"]
        (0.36, 0.03)
    """
    columns, text = TABLES[name]
    cells: Printed = {}
    for row, numbers in _ROW.findall(text.strip()):
        values = _CELL.findall(numbers)
        for column, (value, error) in zip(columns, values, strict=True):
            if value != "N/A":
                cells[f"{row}/{column}"] = float(value), float(error) if error else None
    return cells


def cell_of(model: str, defense: str, setting: str, labels: str | None = None) -> str | None:
    """The key of the printed cell that one measured number stands beside, None where there is none.

    Args:
        model: A zoo name, or a folder of that name; the paper's beta- and TC-VAEs are those of
            beta = 2, by their MSE.
        defense: "undefended", "HMC" or "HMC, restarted".
        setting: "MS-SSIM, linf 0.1", "accuracy, clean" or the like.
        labels: "digit" or "color" on ColorMNIST.

    Examples:
        >>> from experiments.papers.kuzina2022.printed import cell_of
        >>> cell_of("mnist-conv28", "HMC", "MS-SSIM, linf 0.1")
        'kuzina2022/table-2/mnist/vae+hmc/ms-ssim 0.1'
        >>> cell_of("mnist-conv28-beta-2", "HMC", "MS-SSIM, linf 0.1")
        'kuzina2022/table-4/0.1/beta+hmc/mnist/ms-ssim'
        >>> cell_of("zoo/mnist-conv28-300", "undefended", "accuracy, clean")
        'kuzina2022/table-2/mnist/vae/accuracy 0'
    """
    name = re.fullmatch(
        r"(?:.*/)?(mnist|fashion|color-mnist)-conv28(?:-(beta|tc)-2|-300|-1)?", model
    )
    asked = re.fullmatch(r"(MS-SSIM|accuracy)(?:, unclipped)?, (?:(clean)|linf (0\.[12]))", setting)
    if name is None or asked is None or defense.partition(",")[0] not in ("undefended", "HMC"):
        return None
    data, kind = name[1].partition("-")[0], name[2] or "vae"
    row = kind + "+hmc" * defense.startswith("HMC")
    what, radius = asked[1].lower(), "0" if asked[2] else asked[3]
    if data == "color" and what == "accuracy":
        what = f"{labels or 'digit'} accuracy"
    if kind != "vae" and defense.startswith("HMC"):
        return None if radius == "0" else f"kuzina2022/table-4/{radius}/{row}/{data}/{what}"
    number = 3 if data == "color" else 2
    return f"kuzina2022/table-{number}/{data}/{row}/{what} {radius}"


def value_of(key: str) -> tuple[float | None, float | None]:
    """Value and standard error of a cell by its whole key."""
    _, table, place = key.split("/", 2)
    return printed(table)[place]
