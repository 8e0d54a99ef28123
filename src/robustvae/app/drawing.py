"""The explorer's pieces of HTML: pictures with words, the bracket as a line, the spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from torch import Tensor

from robustvae.audit.pictures import picture, signed_picture
from robustvae.report.curves import signal
from robustvae.report.drawing import STYLE, Axis, draw_svg, draw_text, trimmed
from robustvae.rounding import ceil, floor, given, near

CSS = """
.rv-panels{display:flex;flex-wrap:wrap;gap:14px;margin:0}
.rv-panels figure{margin:0;width:150px;max-width:calc(50% - 7px)}
.rv-panels img,.rv-panels svg{display:block;width:100%;height:auto;min-height:40px;
image-rendering:pixelated;border:1px solid #8888;border-radius:4px}
.rv-panels figcaption{font-size:.85rem;line-height:1.3;margin-top:.3rem}
.rv-wide svg{max-width:100%;height:auto}
.gradio-container{max-width:960px!important;margin-inline:auto!important}
.min_value,.max_value{color:inherit!important}
footer{display:none!important}
.block.hide-container{overflow:visible!important}
"""


def panels(members: Mapping[str, Tensor]) -> str:
    """Inputs and outputs side by side, each with its name.

    Args:
        members: By name; each (C, H, W) in [0, 1], a signal where H is 1.
    """
    return _figures({name: _drawn(tensor, name) for name, tensor in members.items()})


def eigen_images(values: list[float], directions: list[Tensor]) -> str:
    """Eigen-images with their eigenvalues, each on a scale of its own.

    Args:
        values: Eigenvalues.
        directions: Eigen-images, (C, H, W).
    """
    pictures = {}
    for place, (value, direction) in enumerate(zip(values, directions, strict=True), 1):
        name = f"{place}: eigenvalue {near(value)}"
        scale = float(direction.abs().max()) or 1.0
        if direction.shape[-2] == 1:
            rows = direction.squeeze(-2).cpu().double().tolist()
            pictures[name] = signal(rows, -scale, scale, name)
        else:
            png = signed_picture(direction, scale)["png"]
            pictures[name] = f'<img src="data:image/png;base64,{png}" alt="eigen-image {name}">'
    return _figures(pictures)


def _figures(drawn: Mapping[str, str]) -> str:
    parts = [
        f"<figure>{content}<figcaption>{escape(name)}</figcaption></figure>"
        for name, content in drawn.items()
    ]
    return f'<div class="rv-panels">{"".join(parts)}</div>'


def _drawn(tensor: Tensor, name: str) -> str:
    if tensor.shape[-2] == 1:
        return signal(tensor.squeeze(-2).cpu().double().tolist(), 0.0, 1.0, name)
    return f'<img src="data:image/png;base64,{picture(tensor)["png"]}" alt="{escape(name)}">'


def bracket(certified: float, attacked: float, radius: float, r: float) -> str:
    """The bracket of one input as a line, with the radius of the attack on it.

    Args:
        certified: The lower bound.
        attacked: The upper bound; infinite where no attack broke the input.
        radius: Of the attack beside it, l2.
        r: The tolerance.
    """
    finite = attacked < float("inf")
    width, height = 480.0, 104.0  # legible on a phone, too
    axis = Axis(0.0, max(radius, certified, attacked if finite else 0.0) * 1.15, 12.0, width - 12)
    low = axis(certified)
    high = axis(attacked) if finite else width - 12
    parts = [
        f'<rect class="gap" x="{low:.1f}" y="38" width="{max(high - low, 0):.1f}" height="18"/>',
        f'<rect class="proved" x="12" y="38" width="{max(low - 12, 0):.1f}" height="18"/>',
        f'<path class="axis" d="M12 56H{width - 12}"/>',
        f'<path class="limit" d="M{axis(radius):.1f} 28V62"/>',
    ]
    if finite:
        parts.append(f'<circle class="free" cx="{high:.1f}" cy="47" r="6"/>')
    for tick in axis.ticks():
        parts.append(draw_text(axis(tick), 74, trimmed(near(tick)), anchor="middle"))
    words = (
        f"certified {floor(certified)}, attacked {ceil(attacked) if finite else 'not broken'}, "
        f"at r = {given(r)}"
    )
    parts.append(draw_text(12, 20, words, kind="strong"))
    parts.append(draw_text(12, 94, "size of change (ℓ₂); dashed: the attack above"))
    svg = draw_svg(width, height, f"Bracket of this input: {words}", parts)
    return f'<div class="rv-wide"><style>{STYLE}</style>{svg}</div>'
