"""The mistakes and odd inputs of a stranger's first minutes: is each one met, and how?

A case is met where it works, where one of the library's own errors names it, or where the diagnosis
names it. It is silent where a wrong model is judged without a word, and a traceback where anything
else is raised.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from robustvae.errors import RobustVAEError
from robustvae.jacobians import products
from robustvae.metrics import ms_ssim

SHAPE = (1, 8, 8)


class Rows(nn.Module):
    """Linear layers on rows of pixels, after the tutorials; the decoder ends as the case says."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.read, self.mean, self.spread = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.write = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64))
        self.end = nn.Sigmoid() if end is None else end

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        h = self.read(x.reshape(len(x), -1)).relu()
        return self.mean(h), self.spread(h) - 2

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        image: Tensor = self.end(self.write(z))
        return image

    def forward(self, x: Tensor) -> Any:
        """Reconstruction and code."""
        mean, log_var = self.encode(x)
        return self.decode(mean), mean, log_var


class InPlace(Rows):
    """Writes into its input."""

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        x -= 0.5
        return super().encode(x)


class Broken(Rows):
    """Decodes to no numbers."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return super().decode(z) * torch.nan


class Bounded(nn.Module):
    """tanh, trained by hand: it repeats pictures of [-1, 1]."""

    def encode(self, x: Tensor) -> Tensor:
        """Inputs to codes."""
        return x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return z.clamp(-1, 1).reshape(-1, *SHAPE)


class Logits(Bounded):
    """Repeats pictures of [0, 1], as logits."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to logits."""
        return 12 * (z - 0.5).reshape(-1, *SHAPE)


class Centered(Bounded):
    """Reads [-1, 1] and writes it: fed with [0, 1] it is off."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return torch.tanh(3 * (z - 0.3)).reshape(-1, *SHAPE)


class Bounded7(Bounded):
    """The same for 7 x 5 pixels."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return z.clamp(-1, 1).reshape(-1, 1, 7, 5)


class Grid(nn.Module):
    """Codes of four axes."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 2, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)

    def encode(self, x: Tensor) -> Tensor:
        """Inputs to codes."""
        code: Tensor = self.down(x)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return torch.sigmoid(self.up(z))


def attack(vae: Any, x: Tensor) -> Any:
    """A short attack."""
    search, ball = rv.ProjectedAscent(steps=2, restarts=1), rv.Ball("l2", 0.5)
    return rv.Attack(rv.MaximumDamage(), search, ball)(rv.Victim(vae), x, generator=rv.generator(0))


def audited(data: Any) -> Any:
    """A short audit."""
    plan = {"base": "smoke", "inputs": 2, "probes": 0, "margins": None, "draws": 10}
    vae = rv.wrap(Rows(), image_shape=SHAPE)
    return rv.audit(vae, data, plan, question={"r": 1.0})


def pair(model: Rows | None = None, **options: Any) -> Any:
    """A model by its two functions."""
    model = Rows() if model is None else model
    return rv.wrap(
        encode=model.encode,
        decode=model.decode,
        latent=4,
        image_shape=SHAPE,
        returns="mean_log_var",
        **options,
    )


class Spreads(Rows):
    """Hands its standard deviation over as if it were a log-variance."""

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        mean, log_var = super().encode(x)
        return mean, torch.exp(0.5 * log_var)


def _hidden(model: Rows, x: Tensor) -> Any:
    vae = rv.wrap(
        encode=lambda u: model.encode(u),
        decode=lambda z: model.decode(z),
        latent=4,
        image_shape=SHAPE,
        returns="mean_log_var",
    )
    return rv.check(vae, x)


class Flat(Bounded):
    """Moves with its input by nothing that a gradient sees."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return 0.5 + 0 * z.reshape(-1, *SHAPE)


class Faint(Bounded):
    """Outputs of a size of 1e-12."""

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return 1e-12 * super().decode(z)


class Narrow(Rows):
    """A spread of 1e-6, as autoencoders without one are made to have."""

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        mean, _ = super().encode(x)
        return mean, torch.full_like(mean, -27.6)


class Failing(Rows):
    """Fails at the fifth call."""

    calls = 0

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        self.calls += 1
        if self.calls > 4:
            raise OSError("the fifth call")
        return super().encode(x)


class Clips(nn.Module):
    """Clips of four pictures of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv3d(1, 2, 2, 2), nn.ConvTranspose3d(2, 1, 2, 2)

    def encode(self, x: Tensor) -> Tensor:
        """Inputs to codes."""
        code: Tensor = self.down(x)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        return torch.sigmoid(self.up(z))


def kept(x: Tensor) -> bool:
    """Whether changes keep their ball and their range, in all norms, with a box and without."""
    victim, search = rv.Victim(rv.wrap(Rows())), rv.ProjectedAscent(steps=2, restarts=1)
    holds = True
    for norm in ("l2", "linf"):
        for radius in (0.01, 0.1, 1.0, 3.0):
            for box in ({}, {"low": None, "high": None}):
                ball = rv.Ball(norm, radius, **box)
                result = rv.Attack(rv.MaximumDamage(), search, ball)(
                    victim, x, generator=rv.generator(0)
                )
                holds &= bool(ball.contains(x, result.x_adv).all())
    return holds


def by(ball: Any, x: Tensor, model: Any = None, goal: Any = None, steps: int = 3) -> Any:
    """An attack of a few steps within a ball."""
    vae = rv.wrap(Rows() if model is None else model, image_shape=SHAPE)
    search = rv.ProjectedAscent(steps=steps, restarts=1)
    goal = rv.MaximumDamage() if goal is None else goal
    return rv.Attack(goal, search, ball)(rv.Victim(vae), x, generator=rv.generator(0))


def restored(x: Tensor) -> bool:
    """Whether mode, gradients and random state are as before, after a model fails in an attack."""
    model = Failing().train()
    vae = rv.wrap(encode=model.encode, decode=model.decode, latent=4, image_shape=SHAPE,
                  returns="mean_log_var")  # fmt: skip
    before = torch.get_rng_state()
    try:
        attack(vae, x)
    except RobustVAEError:
        same = torch.equal(before, torch.get_rng_state())
        return same and model.training and all(p.requires_grad for p in model.parameters())
    return False


def alone(x: Tensor) -> bool:
    """Whether an input's attack finds the same alone and in a batch, to rounding."""
    model = Rows()
    together, single = (by(rv.Ball("l2", 0.5), part, model) for part in (x, x[:1]))
    return bool((together.score[:1] - single.score).abs() <= 1e-3 * single.score)


def fresh(x: Tensor) -> bool:
    """Whether a score of a random victim holds by other draws, to a fifth."""
    victim = rv.Victim(rv.wrap(Rows()), rv.PosteriorSample())
    search = rv.ProjectedAscent(steps=5, restarts=1)
    attack = rv.Attack(rv.MaximumDamage(draws=64), search, rv.Ball("l2", 1.0))
    result = attack(victim, x, generator=rv.generator(0))
    again = attack.score(victim, x, result.x_adv, generator=rv.generator(1))
    return bool(((again - result.score).abs() <= 0.2 * result.score).all())


def within(context: Any, x: Tensor) -> Any:
    """An attack inside a context of the caller's."""
    model = Rows()
    with context:
        return attack(rv.wrap(model), x)


def _made_within(context: Any, x: Tensor) -> Any:
    with context:
        model = Rows()
    return attack(rv.wrap(model), x)


def similar(x: Tensor) -> bool:
    """Whether MS-SSIM and its slope are finite for opposites, flat pictures and rounding past 1."""
    holds = True
    wide = torch.nn.functional.interpolate(x, (176, 176))
    for one, other in (
        (wide, 1 - wide),
        (torch.full_like(wide, 0.5), torch.full_like(wide, 0.5)),
        (torch.zeros_like(wide), torch.ones_like(wide)),
        (wide.clamp(max=1) + 1.2e-7, wide),
    ):
        y = one.clone().requires_grad_()
        value = ms_ssim(y, other)
        (slope,) = torch.autograd.grad(value.sum(), y)
        holds &= bool(value.isfinite().all() and slope.isfinite().all() and (value <= 1.001).all())
    return holds


def turned(x: Tensor) -> bool:
    """Whether a file is read as its camera was held: eight ways to store one picture."""
    from PIL import Image

    array = (255 * x[0, 0, :, :5]).round().byte().numpy()
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: array.T[::-1],
        7: array.T[::-1, ::-1],
        8: array.T[:, ::-1],
    }
    with tempfile.TemporaryDirectory() as folder:
        for orientation, pixels in stored.items():
            image = Image.fromarray(pixels.copy())
            tags = image.getexif()
            tags[0x0112] = orientation
            image.save(f"{folder}/{orientation}.png", exif=tags)
        read = rv.data.load(f"folder:{folder}").x
    return bool((read[:, 0] == torch.from_numpy(array / 255.0).to(read)).all())


def modes(x: Tensor) -> bool:
    """Whether files of other depths and kinds hold the same picture, white where transparent."""
    from PIL import Image

    array = (255 * x[0, 0]).round().byte().numpy()
    gray, holds = Image.fromarray(array), True
    images = {
        "deep.png": Image.fromarray(257 * array.astype("uint16")),
        "palette.png": gray.convert("P"),
        "alpha.png": gray.convert("LA"),
        "cmyk.tiff": gray.convert("RGB").convert("CMYK"),
        "float.tiff": Image.fromarray((array / 255.0).astype("float32")),
    }
    for name, image in images.items():
        with tempfile.TemporaryDirectory() as folder:
            image.save(f"{folder}/{name}")
            read = rv.data.load(f"folder:{folder}+channels:1").x[0, 0]
            holds &= bool((read - torch.from_numpy(array / 255.0).to(read)).abs().max() < 1e-2)
    return holds


def light(x: Tensor) -> bool:
    """Whether forty attacks leave no graph and no tensors behind."""
    model, counts = Rows(), []
    for _ in range(4):
        for _ in range(10):
            by(rv.Ball("l2", 0.5), x, model)
        gc.collect()
        counts.append(sum(isinstance(one, Tensor) for one in gc.get_objects()))
    return counts[-1] <= counts[1]


class Alone(Rows):
    """Encodes, draws and decodes in its forward pass alone."""

    encode = decode = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        """Reconstruction, log-variance and mean."""
        mean, log_var = Rows.encode(self, x)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return Rows.decode(self, z).view_as(x), log_var, mean


class Left(Rows):
    """Decodes with what the encoder left on the module."""

    features: Any = None

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        self.features = 0.1 * x
        return super().encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Codes to inputs."""
        image: Tensor = super().decode(z).view_as(self.features) + self.features
        return image


class Late(Rows):
    """Makes a layer in its first call."""

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        if not hasattr(self, "late"):
            self.late = nn.Linear(4, 4).to(x)
        mean, log_var = super().encode(x)
        return self.late(mean), log_var


class Shrinks(Rows):
    """Changes its weights at every call, behind the back of autograd."""

    def encode(self, x: Tensor) -> Any:
        """Inputs to codes."""
        self.read.weight.data.mul_(0.999)
        return super().encode(x)


class Once(torch.autograd.Function):
    """A sine whose backward pass has no derivative of its own."""

    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        """The sine."""
        context.save_for_backward(z)
        return z.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """The gradient times the cosine."""
        (z,) = context.saved_tensors
        return gradient * z.cos()


def _equals_reference(x: Tensor) -> bool:
    """Whether a forward pass alone is read as an encoder and a decoder, both right."""
    model = Alone()
    vae = rv.wrap(model, image_shape=SHAPE)
    z = torch.linspace(-2, 2, 8).reshape(2, 4).to(x)
    with torch.no_grad():
        image = vae.decode(z).mean
        gap = (vae.encode(x).mean - Rows.encode(model, x)[0]).abs().max()
        other = (image.flatten() - Rows.decode(model, z).flatten()).abs().max()
    return float(gap) < 1e-6 and float(other) < 1e-6


def _once(x: Tensor) -> bool:
    """Whether a Jacobian through such a layer is the right one."""
    z = x.flatten(1)[:, :3]
    slopes = products(lambda u: Once.apply(u), z).jvp(torch.ones_like(z))
    return bool((slopes - z.cos()).abs().max() < 1e-3)


Case = Callable[[Tensor], Any]
CASES: dict[str, Case] = {
    "wrap(module), one line": lambda x: attack(rv.wrap(Rows()), x),
    "Victim(module)": lambda x: rv.Victim(Rows()),  # type: ignore[arg-type]
    "flattened inputs": lambda x: attack(rv.wrap(Rows(), image_shape=SHAPE), x),
    "decoder returns a tensor": lambda x: attack(pair(), x),
    "standard deviation as log-variance": lambda x: rv.check(pair(model=Spreads()), x),
    "logits as a mean": lambda x: rv.check(rv.wrap(Logits(), image_shape=SHAPE), x),
    "logits as probabilities": lambda x: rv.check(
        pair(model=Rows(nn.Identity()), likelihood="bernoulli", outputs="probabilities"), x
    ),
    "tanh decoder on [0, 1]": lambda x: rv.check(rv.wrap(Centered(), image_shape=SHAPE), x),
    "images in [-1, 1]": lambda x: attack(
        rv.wrap(Bounded(), image_shape=SHAPE, pixels=(-1, 1)), x
    ),
    "images in [-1, 1], unsaid": lambda x: attack(rv.wrap(Bounded(), image_shape=SHAPE), 2 * x - 1),
    "float16": lambda x: attack(rv.wrap(Rows().half(), image_shape=SHAPE), x.float()),
    "bfloat16": lambda x: attack(rv.wrap(Rows().bfloat16(), image_shape=SHAPE), x.float()),
    "x = 1 + 1.2e-7": lambda x: attack(rv.wrap(Rows()), (x + 1.2e-7)),
    "decoder in [-1, 1]": lambda x: rv.check(rv.wrap(Centered(), image_shape=SHAPE), x),
    "no spread": lambda x: attack(rv.wrap(Bounded(), image_shape=SHAPE), x),
    "codes (B, 2, h, w)": lambda x: attack(rv.wrap(Grid(), image_shape=SHAPE), x),
    "tensor to audit": lambda x: audited(x),
    "array to audit": lambda x: audited(x.numpy()),
    "Dataset to audit": lambda x: audited(torch.utils.data.TensorDataset(x)),
    "DataLoader to audit": lambda x: audited(
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2)
    ),
    "signed audio (1, T)": lambda x: attack(
        rv.wrap(Rows(nn.Tanh()), image_shape=(1, 64), pixels=(-1, 1)), x.reshape(-1, 1, 1, 64)
    ),
    "counts": lambda x: attack(
        rv.wrap(Rows(), pixels=rv.data.InputSpace((64,), high=16, discrete=True)),
        (16 * x).round().reshape(-1, 1, 1, 64) / 16,
    ),
    "in-place operation": lambda x: attack(rv.wrap(InPlace(), image_shape=SHAPE), x),
    "NaN decoder": lambda x: rv.check(rv.wrap(Broken(), image_shape=SHAPE), x),
    "float64 weights in a closure": lambda x: attack(pair(model=Rows().double()), x.double()),
    "lambda hides training mode": lambda x: _hidden(Rows(), x),
    "range and norm, 16 combinations": kept,
    "zero gradient": lambda x: set(by(rv.Ball("l2", 0.5), x, Flat()).status) == {"inconclusive"},
    "outputs x 1e-12": lambda x: set(by(rv.Ball("l2", 0.5), x, Faint()).status) == {"ok"},
    "a radius for each input": lambda x: by(rv.Ball("l2", torch.linspace(0.1, 1.0, len(x))), x),
    "radius 1e6": lambda x: by(rv.Ball("l2", 1e6), x),
    "radius 1e-12": lambda x: by(rv.Ball("l2", 1e-12), x),
    "state after an exception": restored,
    "batch against one input": alone,
    "larger radius": lambda x: bool(
        by(rv.Ball("l2", 1.0), x).score.mean() > by(rv.Ball("l2", 0.1), x).score.mean()
    ),
    "random victim, other draws": fresh,
    "spread of 1e-6": lambda x: attack(rv.wrap(Narrow()), x),
    "inside no_grad": lambda x: within(torch.no_grad(), x),
    "inside inference_mode": lambda x: within(torch.inference_mode(), x),
    "weights made in inference_mode": lambda x: _made_within(torch.inference_mode(), x),
    "inside autocast": lambda x: within(torch.autocast("cpu", dtype=torch.bfloat16), x.float()),
    "DataParallel": lambda x: attack(rv.wrap(nn.DataParallel(Rows())), x),
    "jit": lambda x: attack(
        rv.wrap(
            torch.jit.trace_module(Rows(), {"encode": x[:1], "decode": torch.rand(1, 4).to(x)}),
            image_shape=SHAPE,
        ),
        x,
    ),
    "video": lambda x: attack(
        rv.wrap(Clips(), image_shape=(1, 4, 4, 4)), x.reshape(-1, *rv.wrap(
            Clips(), image_shape=(1, 4, 4, 4)).image_shape)
    ),
    "classifier of (B,)": lambda x: rv.Attack(
        rv.ClassifierFlip(), rv.ProjectedAscent(steps=2), rv.Ball("l2", 0.5)
    )(
        rv.Victim(rv.wrap(Rows()), classifier=lambda z: z.sum(1)),
        x, generator=rv.generator(0),
    ),
    "eight-bit rounding and JPEG in the rows": lambda x: any(
        column.id.startswith("survival") or "jpeg" in column.id for column in audited(x).columns
    ),
    "MS-SSIM of opposites and flat pictures, its slope": similar,
    "EXIF orientation": turned,
    "16 bits, palette, alpha, CMYK, floats": modes,
    "40 attacks, memory": light,
    "odd sides": lambda x: attack(rv.wrap(Bounded7(), image_shape=(1, 7, 5)), x[..., :7, :5]),
    "forward alone encodes and decodes": _equals_reference,
    "decoder reads what the encoder left": lambda x: (
        rv.wrap(Left(), image_shape=SHAPE).output_only
    ),
    "layers made in the first call": lambda x: bool(rv.wrap(Late(), image_shape=SHAPE)) and False,
    "weights changed in a call": lambda x: rv.check(rv.wrap(Shrinks(), image_shape=SHAPE), x),
    "backward pass without a derivative": _once,
}  # fmt: skip
NAMED = {  # what the diagnosis must say of a case
    "standard deviation as log-variance": "spread",
    "logits as a mean": "output_kind",
    "logits as probabilities": "output_kind",
    "tanh decoder on [0, 1]": "range",
    "decoder in [-1, 1]": "range",
    "NaN decoder": "finite",
    "weights changed in a call": "state_unchanged",
}


def outcome(name: str, case: Case, x: Tensor) -> str:
    """How a case is met, in words; "silent" and "traceback" where it is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = case(x)
    except RobustVAEError as error:
        return f"named: {type(error).__name__}: {' '.join(str(error).split())[:110]}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    if name in NAMED:
        faults = [entry for entry in result.items if entry.passed is False]
        words = [f"{entry.name}: {entry.message}" for entry in faults if NAMED[name] in entry.name]
        return f"diagnosed: {words[0][:110]}" if words else "silent"
    return "silent" if result is False else "works"


@final
@dataclass(frozen=True)
class Spec:
    """What is tried.

    Attributes:
        cases: Names; empty takes all.
        images: Inputs of each case.
    """

    cases: tuple[str, ...] = ()
    images: int = 4


@item(
    "bench/first-minutes",
    sizes={"smoke": Spec(("Victim(module)", "NaN decoder")), "laptop": Spec()},
)
def first_minutes(spec: Spec, run: Run) -> Result:
    """Mistakes of a stranger's first minutes: met, silent, or a traceback."""
    x = run.images("digits").read(torch.arange(spec.images)).to(torch.get_default_dtype())
    rows = []
    for name in run.each(spec.cases or tuple(CASES)):
        words = outcome(name, CASES[name], x)
        run.progress(f"{name}: {words}")
        rows.append(Row(name, "how it is met", 1.0 - float(words.startswith(("silent", "trace"))),
                        text=words))  # fmt: skip
    failures = sum(row.measured == 0 for row in rows)
    return run.result(
        f"First minutes: {failures} of {len(rows)} cases silent or a traceback",
        "1 where a case is met",
        rows,
        ("Untrained networks of 8 x 8 pixels; the first test digits.",),
    )
