"""The explorer's page, made with gradio: it listens on this machine only."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from robustvae.app import drawing
from robustvae.app.explorer import Explorer, Scene
from robustvae.errors import ConfigError, MissingExtraError, RobustVAEError, install_command
from robustvae.rounding import floor, given, near

HOST = "127.0.0.1"  # loopback: nobody else is served, and nothing is shared
_INTRO = (
    "Choose an input, or upload a picture; set the size of the attack. The same calls as "
    "`rv.Attack`, `rv.certify`, `rv.estimate_margin` and `rv.pullback` compute what you see."
)

_NOTHING_CERTIFIED = (
    "Nothing is certified from the weights here. `robustvae certify --method neyman_pearson`, or "
    "input noise as a defense, may certify more, by many draws."
)


def build(explorer: Explorer, r: float) -> Any:
    """The page as gradio's Blocks.

    Args:
        explorer: What computes.
        r: Output distance tolerated at first, l2 in pixel units.

    Raises:
        MissingExtraError: Without gradio.
    """
    gradio = _gradio()

    def chosen(number: float, upload: Any) -> Any:
        return explorer.input(int(number)) if upload is None else explorer.read(upload)

    def attack(number: float, upload: Any, radius: float, norm: str) -> tuple[str, str]:
        try:
            scene = explorer.attack(chosen(number, upload), radius, norm)
        except RobustVAEError as error:
            return "", f"Not possible: {error}"
        words = (
            f"The change has size **{near(scene.size)}** ({norm}); the output moved by "
            f"**{near(scene.damage)}**"
        )
        if scene.defended_damage is not None:
            words += f", the defended one by **{near(scene.defended_damage)}** from its own"
        return drawing.panels(scene.panels), f"{words}. r is {given(r)}."

    def bracket(number: float, upload: Any, radius: float, r: float) -> tuple[str, str, str]:
        try:
            x = chosen(number, upload)
            lower, upper = explorer.bracket(x, r)
            edge = explorer.edge(x, lower, upper)
        except RobustVAEError as error:
            return "", "", f"Not possible: {error}"
        line = drawing.bracket(float(lower.radius[0]), float(upper.value[0]), radius, r)
        if edge is None:
            if float(lower.radius[0]) > 0:
                return line, "", "No attack broke it, so there is no worst direction to show."
            return line, "", _NOTHING_CERTIFIED
        return line, drawing.panels(edge.panels), edge_in_words(edge, r)

    def spectrum(number: float, upload: Any) -> tuple[str, str]:
        try:
            values, directions = explorer.spectrum(chosen(number, upload))
        except RobustVAEError as error:
            return "", f"Not possible: {error}"
        words = "Directions of the input that the encoder's mean and spread react to most."
        return drawing.eigen_images(values, directions), words

    limit = 4 * r
    with gradio.Blocks(title="robustvae explorer", analytics_enabled=False) as page:
        gradio.Markdown(f"# {explorer.images.name}: attack by hand\n\n{_INTRO}")
        with gradio.Row():
            number = gradio.Slider(
                0, len(explorer.images) - 1, value=0, step=1, label="Input", elem_id="input"
            )
            radius = gradio.Slider(
                limit / 100, limit, value=r, step=limit / 100, label="Size", elem_id="size"
            )
            norm = gradio.Radio(["l2", "linf"], value="l2", label="Norm")
        with gradio.Accordion("Upload a picture instead", open=False):
            upload = gradio.Image(type="numpy", label="Picture", height=160)
        seen = gradio.HTML(elem_id="attack")
        words = gradio.Markdown()
        with gradio.Accordion("Bracket and certified ball", open=True):
            with gradio.Row():
                tolerance = gradio.Number(r, label="r", minimum=1e-6)
                measure = gradio.Button("Certify and search", elem_id="measure")
            line, edge, edge_words = (
                gradio.HTML(elem_id="bracket"),
                gradio.HTML(),
                gradio.Markdown(),
            )
        with gradio.Accordion("Spectrum with eigen-images", open=True):
            decompose = gradio.Button("Decompose", elem_id="decompose")
            eigen, eigen_words = gradio.HTML(elem_id="spectrum"), gradio.Markdown()
        inputs = [number, upload, radius, norm]
        for control in (number, radius):
            control.release(attack, inputs, [seen, words])
        for control in (norm, upload):
            control.change(attack, inputs, [seen, words])
        page.load(attack, inputs, [seen, words])
        measure.click(bracket, [number, upload, radius, tolerance], [line, edge, edge_words])
        decompose.click(spectrum, [number, upload], [eigen, eigen_words])
    return page


def edge_in_words(edge: Scene, r: float) -> str:
    """What happens on the edge of the certified ball, set against r.

    A certificate speaks of the probability that a random output stays within r; what is shown is
    the output of the mean code, which a sound certificate of m = 1/2 need not keep within r.

    Args:
        edge: What the explorer found there.
        r: Output distance tolerated.
    """
    side = "less than" if edge.damage < r else "as much as" if edge.damage == r else "more than"
    return (
        f"On the edge of the certified ball, at size {floor(edge.size)} in the worst direction "
        f"found, the output moves by {near(edge.damage)}: {side} r = {given(r)}."
    )


def serve(explorer: Explorer, r: float, port: int, *, block: bool = True) -> str:
    """Show the explorer on this machine's loopback address.

    Args:
        explorer: What computes.
        r: Output distance tolerated at first.
        port: To listen on; 0 takes a free one.
        block: Say the address once it is served, and stay until interrupted.

    Returns:
        The address.

    Raises:
        MissingExtraError: Without gradio.
        ConfigError: The port is taken.
    """
    # nothing is sent anywhere: neither statistics nor a request for fonts
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gradio = _gradio()
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page = build(explorer, r)
    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=drawing.CSS,
        )
    except OSError:  # what gradio raises where it cannot listen
        raise ConfigError(
            f"port {port} cannot be had: name another with --port, 0 takes a free one"
        ) from None
    if block:
        print(f"explorer: {url} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # its proper end
            page.block_thread()
    return str(url)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise MissingExtraError(f"the explorer needs gradio: {install_command('app')}") from None
    return gradio
