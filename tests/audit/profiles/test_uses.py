"""The profiles for encoders, codecs and representations: planted cases with known answers."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors, registry
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.codec import Codec, codec_of, noisy_codes
from robustvae.audit.profiles.heads import LinearHead, load_head, save_head
from robustvae.audit.profiles.latent_diffusion import LatentDiffusion
from robustvae.audit.profiles.pace import UseClock
from robustvae.audit.profiles.representation import Representation
from robustvae.audit.profiles.transforms import STANDARD, transform_of
from robustvae.records.parts import UseFacts
from robustvae.report.profiles import codec as codec_section
from robustvae.report.profiles import latent_diffusion as latent_section
from robustvae.report.profiles import representation as representation_section
from robustvae.report.profiles.section import section_of
from robustvae.testing import members_of

QUICK = "projected-ascent:steps=10,restarts=1"


class Mean(nn.Module):
    """Codes are sums over the pixels: drift under linf is known exactly."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode(self, x):
        return self.gain * x.flatten(1).sum(1, keepdim=True)

    def decode(self, z):
        return (z / (self.gain * 64)).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def images(n=12):
    levels = torch.linspace(0.3, 0.7, n).reshape(-1, 1, 1, 1)
    return rv.data.from_tensor(levels.expand(n, 1, 8, 8).contiguous(), torch.arange(n) % 2)


def wrapped(module):
    return rv.Victim(rv.wrap(module, image_shape=(1, 8, 8)))


def facts(name, result):
    return UseFacts(name=name, rows=result.rows, facts=result.facts, gallery=result.gallery)


def test_drift_reaches_known_optimum():
    use = LatentDiffusion(radii=(0.02,), inputs=12, search=QUICK, transforms=("blur:1",))
    result = use(UseContext({"mean": wrapped(Mean())}, images()))
    rows = [r for r in result.rows if r["goal"] == "away" and "transform" not in r]
    # all 64 pixels move by the radius; the unit is the gap between two inputs
    expected = 64 * 0.02 / result.facts["unit"]
    assert all(row["drift"] == pytest.approx(expected, rel=1e-4) for row in rows)
    target = [r["left_to_target"] for r in result.rows if r["goal"] == "target"]
    assert min(target) < 0.5
    noise = [r["drift"] for r in result.rows if r["goal"] == "noise"]
    assert max(noise) < expected / 2
    # blur keeps the sum of a constant change, away from no border at all
    kept = [r["drift"] for r in result.rows if r.get("transform") == "blur:1"]
    assert all(value == pytest.approx(expected, rel=0.02) for value in kept)


def test_transfer_between_equal_encoders():
    victims = {"one": wrapped(Mean()), "other": wrapped(Mean(3.0))}
    use = LatentDiffusion(radii=(0.02,), inputs=6, search=QUICK, transforms=(), robust=False)
    result = use(UseContext(victims, images()))
    own = [r["drift"] for r in result.rows if r["goal"] == "away" and r["read_by"] == "one"]
    crossed = [r["drift"] for r in result.rows if (r["made_for"], r["read_by"]) == ("one", "other")]
    assert crossed == pytest.approx(own[: len(crossed)], rel=1e-4)
    section = latent_section.section(facts("latent-diffusion", result), ["one", "other"])
    assert section.answer[0].startswith(
        "By changing each value by at most 0.02 (linf) an attacker moves an image's code by"
    )
    assert "Read by another encoder" in section.answer[-1]


@pytest.mark.parametrize("spec", STANDARD)
def test_transforms_pass_gradients(spec):
    x = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    y = transform_of(spec)(x, generator=rv.generator(0))
    y.sum().backward()
    assert y.shape == x.shape and bool((x.grad.abs() > 0).any())


@pytest.mark.parametrize("spec", ["jpeg", "jpeg:0", "resize:2", "sharpen:1"])
def test_bad_transforms_are_refused(spec):
    with pytest.raises(errors.RobustVAEError):
        LatentDiffusion(transforms=(spec,))


class Entropy(nn.Module):
    """Bits grow with the magnitude of the code: 1 + |y| bits a value."""

    def quantize(self, y):
        return y + torch.rand_like(y) - 0.5 if self.training else y.round()

    def forward(self, y):
        y_hat = self.quantize(y)
        return y_hat, 2.0 ** (-1 - y_hat.abs())


class PlantedCodec(nn.Module):
    """A codec whose code is 20 (x - 1/2): the rate is known exactly."""

    def __init__(self, writes=False):
        super().__init__()
        self.entropy_bottleneck = Entropy()
        self.scale = nn.Parameter(torch.tensor(20.0))
        if writes:
            self.compress = lambda x: {"strings": [[b"abc"] * len(x)]}

    def g_a(self, x):
        return self.scale * (x - 0.5)

    def g_s(self, y):
        return y / self.scale + 0.5

    def forward(self, x):
        y_hat, likelihoods = self.entropy_bottleneck(self.g_a(x))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}}


def test_rate_attack_reaches_optimum():
    x = torch.full((4, 1, 8, 8), 0.6)
    use = Codec(radii=(0.1,), inputs=4, search=QUICK)
    result = use(UseContext({"codec": wrapped(PlantedCodec())}, rv.data.from_tensor(x)))
    by_goal = {row["goal"]: row["bits"] for row in result.rows}
    # 20 (0.6 - 0.5) = 2: 3 bits; up to 0.7: 4, so 5 bits
    assert by_goal["nothing"] == pytest.approx(3 * 64)
    assert by_goal["rate"] == pytest.approx(5 * 64)
    assert result.facts["counted of codec"] == "likelihood of rounded codes"
    section = codec_section.section(facts("codec", result), ["codec"])
    assert "cost 67% more bits on average" in section.answer[0]


def test_files_are_counted_where_written():
    victim = wrapped(PlantedCodec(writes=True))
    use = Codec(radii=(0.1,), inputs=2, search=QUICK)
    result = use(UseContext({"codec": victim}, rv.data.from_tensor(torch.rand(2, 1, 8, 8))))
    assert {row["bits"] for row in result.rows} == {24.0}
    assert result.facts["flips_in_batch of codec"] == 0


def test_noise_reaches_entropy_models_only():
    victim = wrapped(PlantedCodec().eval())
    module = codec_of(victim)
    with noisy_codes(module):
        assert module.entropy_bottleneck.training and not module.training
    assert not module.entropy_bottleneck.training


def test_odd_sizes_are_padded():
    class Halving(PlantedCodec):
        def g_a(self, x):
            if x.shape[-1] % 4:
                raise ValueError("sides must be multiples of 4")
            return super().g_a(x)

    x = torch.rand(2, 1, 6, 7)
    vae = rv.wrap(Halving(), image_shape=(1, 6, 7))
    assert "padded" in vae.recognized
    output = rv.Victim(vae).reconstruct(x, generator=rv.generator(0))
    assert float((output - x).abs().max()) <= 0.5 / 20 + 1e-6
    bits = Codec(radii=(0.1,), inputs=2, search=QUICK)(
        UseContext({"codec": rv.Victim(vae)}, rv.data.from_tensor(x))
    )
    assert all(row["bits"] >= 64 for row in bits.rows)  # of 8 x 8 codes, 1 bit each at least


def test_head_finds_classes_and_returns(tmp_path):
    codes = torch.cat([torch.randn(50, 3) - 2, torch.randn(50, 3) + 2])
    labels = torch.arange(100) // 50
    head = LinearHead.fit(codes, labels)
    assert float((head(codes).argmax(1) == labels).float().mean()) > 0.95
    save_head(head, tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors", 3)
    assert torch.equal(again(codes), head(codes))
    with pytest.raises(errors.ShapeError, match="train one for this model"):
        load_head(tmp_path / "head.safetensors", 4)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(errors.CheckpointError):
        load_head(tmp_path / "bad.safetensors", 3)


def sign(z):
    return torch.cat([32.0 - z, z - 32.0], dim=1)


def test_decision_flips_where_it_can():
    """The head reads the sum: a change of 0.1 turns inputs within 0.1 of the middle, no other."""
    use = Representation(
        head=sign, balls=(rv.Ball("linf", 0.1),), inputs=12, search=QUICK, draws=200
    )
    data = images()
    result = use(UseContext({"mean": wrapped(Mean())}, data))
    clean = {r["input"]: r["decision"] for r in result.rows if r["condition"] == "clean"}
    levels = data.x[:, 0, 0, 0]
    for row in result.rows:
        if row["condition"] == "attacked":
            near = abs(float(levels[row["input"]]) - 0.5) < 0.1
            assert (row["decision"] != clean[row["input"]]) == near
            assert row["drift"] > 0


def test_certified_decision_holds():
    victim = rv.Victim(wrapped(Mean()).vae, "input-noise:stddev=0.1,defense=posterior-mean")
    use = Representation(head=sign, balls=(rv.Ball("l2", 0.2),), inputs=6, search=QUICK, draws=300)
    result = use(UseContext({"noisy": victim}, images()))
    levels = images().x[:, 0, 0, 0]
    radii = {r["input"]: r["certified"] for r in result.rows if r["condition"] == "certified"}
    # a sum is turned by a change of 8 |level - 1/2| in l2 and by no smaller one
    assert all(radius <= 8 * abs(float(levels[i]) - 0.5) + 1e-6 for i, radius in radii.items())
    assert max(radii.values()) > 0.1
    section = representation_section.section(facts("representation", result), ["noisy"])
    assert section.answer[0].startswith(
        "By changes of length at most 0.2 (l2) an attacker changes the decision on"
    )
    assert section.figures[0][0](360).startswith("<svg")


def test_black_boxes_are_refused():
    box = rv.Victim(rv.wrap(nn.Identity(), image_shape=(1, 8, 8), output_only=True))
    for use in (LatentDiffusion(), Codec(), Representation()):
        with pytest.raises(errors.UnsupportedError, match="black box"):
            use(UseContext({"box": box}, images()))


def test_every_use_has_profile_and_section():
    from robustvae.report.profiles.section import MODULES

    assert members_of("robustvae", "use") == set(MODULES) == members_of("robustvae", "profile")


def test_profile_from_user_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("use: {name: representation, inputs: 4, balls: [{norm: l2, radius: 0.5}]}\n")
    plan = {"base": "use", "inputs": 2, "probes": 0, "gradient_free": 0}
    digits = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), digits, plan, profile=str(path))
    assert record.use.settings["inputs"] == 4
    assert len([r for r in record.use.rows if r["condition"] == "clean"]) == 4


def test_token_flips_are_counted():
    """Codes 20 (x - 1/2) = 2 are rounded: a change of 0.02 turns no token, 0.03 turns all."""
    balls = (rv.Ball("linf", 0.02), rv.Ball("linf", 0.03))
    use = Representation(head=lambda z: z[:, :2], balls=balls, inputs=4, search=QUICK)
    x = torch.full((4, 1, 8, 8), 0.6)
    result = use(UseContext({"codec": wrapped(PlantedCodec().eval())}, rv.data.from_tensor(x)))
    flips = {r["radius"]: r["token_flips"] for r in result.rows if r["condition"] == "attacked"}
    assert flips == {0.02: 0.0, 0.03: 1.0}
    table = representation_section.section(facts("representation", result), ["codec"]).tables[0]
    assert [row.cells["tokens"].mean for row in table.rows[1:]] == [0.0, 1.0]


class Slow(Mean):
    """Each pass sleeps: minutes are counted by the clock, so that any machine shows the cut."""

    def encode(self, x):
        time.sleep(0.002 * len(x))
        return super().encode(x)


OTHERS = ("codec", "latent-diffusion", "representation")


@pytest.mark.parametrize(
    "name", ["anomaly", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_minutes_cut_every_profile(name):
    data = images(60)
    record = rv.audit(wrapped(Slow()), data, profile=name, minutes=0.1, question={"r": 1.0})
    assert record.timing["seconds"] < 20  # of 6; uncut it takes minutes
    words = [one.reason for one in record.left_out if one.stage == "profile"]
    assert len(words) == 1 and words[0].startswith("cut to the minutes: ")
    assert "inputs" in words[0] or "steps" in words[0]
    section = section_of(record)
    assert section.answer[0] != "No attack was run."


def test_late_stages_are_omitted():
    context = UseContext({"mean": wrapped(Mean())}, images(), clock=UseClock(0.0))
    balls = (rv.Ball("linf", 0.1), rv.Ball("linf", 0.2))
    for use in (
        Representation(head=sign, balls=balls, inputs=4, search=QUICK),
        Codec(radii=(0.1, 0.2), inputs=2, search=QUICK),
        LatentDiffusion(radii=(0.1,), inputs=4, search=QUICK),
    ):
        result = use(context)
        assert any("minutes" in one.reason for one in result.left_out)
        assert any("0.2" in one.stage or "target" in one.stage for one in result.left_out)
        assert not any(row.get("radius") == 0.2 and "drift" in row for row in result.rows)


def test_random_decision_is_majority():
    """A draw errs on three inputs in ten, the majority of draws, which is certified, on none."""
    x = torch.full((12, 1, 8, 8), 0.5)
    # the code is a sum of 64 noisy pixels: above zero in 7 of 10 draws
    bias = -32 + 0.524 * 8 * 0.1
    head = lambda z: torch.cat([z + bias, -z - bias], 1)  # noqa: E731
    noise = rv.InputNoise(stddev=0.1, defense=rv.PosteriorMean())
    victim = rv.Victim(wrapped(Mean()).vae, noise, head)
    data = rv.data.from_tensor(x, torch.zeros(12, dtype=torch.int64))
    rows = {}
    for votes in (1, 101):
        use = Representation(balls=(rv.Ball("l2", 1e-6),), search=QUICK, draws=200, votes=votes)
        result = use(UseContext({"noisy": victim}, data))
        rows[votes] = [r["decision"] for r in result.rows if r["condition"] == "clean"]
    assert rows[101] == [0] * 12 and rows[1] != rows[101]
    with pytest.raises(errors.ConfigError, match="votes must be odd"):
        Representation(votes=4)


HEADS = {
    "json:loads": "must take codes",
    "os:getcwd": "must take codes",
    "nosuch": r"FILE\.safetensors",
    5: "a head is a path",
    (1, 2): "a head is a path",
    lambda z: z[:, :1]: "at least 2 classes",
    lambda z: z.long(): "floating type",
    lambda z: z / 0 * 0: "finite logits",
}


@pytest.mark.parametrize(("head", "words"), HEADS.items(), ids=map(str, HEADS.values()))
def test_odd_heads_are_refused(head, words):
    images = rv.data.load("digits", split="test")
    victims = {"plain": rv.Victim(rv.load("digits-vae"))}
    with pytest.raises(errors.RobustVAEError, match=words):
        Representation(head=head, inputs=4, search=QUICK)(UseContext(victims, images))


@pytest.mark.parametrize("labels", [[0] * 12, [-1, 1] * 6, [0, 10**7] * 6])
def test_labels_without_classes_are_refused(labels):
    data = rv.data.from_tensor(images().x, torch.tensor(labels))
    with pytest.raises(errors.ConfigError, match="classes"):
        Representation(inputs=4, search=QUICK)(UseContext({"mean": wrapped(Mean())}, data))


def test_equal_codes_have_no_unit():
    """Distances are counted in those between codes: where these are 0 nothing is counted."""
    same = rv.data.from_tensor(images().x[:1].repeat(12, 1, 1, 1), torch.arange(12) % 2)
    context = UseContext({"mean": wrapped(Mean())}, same)
    with pytest.raises(errors.UnsupportedError, match="one code: give different images"):
        LatentDiffusion(radii=(0.02,), inputs=12, search=QUICK, transforms=())(context)
    result = Representation(inputs=4, search=QUICK, head=lambda z: torch.cat([z, -z], 1))(context)
    assert not any("drift" in row for row in result.rows)


@pytest.mark.parametrize(
    ("use", "field"), [("anomaly", "suite"), ("latent-diffusion", "transforms")]
)
def test_lone_text_is_no_sequence(use, field):
    """A member would read it letter by letter."""
    with pytest.raises(errors.DtypeError, match=f"{field}=\\['projected-ascent'\\]"):
        registry.build("use", {"name": use, field: "projected-ascent"})
