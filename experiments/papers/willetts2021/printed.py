"""The numbers that [Willetts21] prints: Table 1 in per cent, and four factors in section 5."""

SETS = ("chairs", "faces", "celeba")

PRINTED: dict[str, float] = {
    f"table-1/{part}/{model}/{data}": value
    for part, model, values in (
        ("encoder", "tc", (5.0, 19.5, 73.7)),
        ("encoder", "seatbelt", (1.0, 2.7, 40.2)),
        ("decoder", "tc", (-19.4, -15.0, -6.8)),
        ("decoder", "seatbelt", (-7.6, -6.0, -11.4)),
    )
    for data, value in zip(SETS, values, strict=True)
} | {
    "text/latent, tc against vae/chairs": 1e3,
    "text/latent, tc against vae/faces": 10.0,
    "text/output, tc against vae/chairs": 1.2,
    "text/latent, seatbelt beta 10 L 5 against beta 1 L 1/all": 1e7,
}
