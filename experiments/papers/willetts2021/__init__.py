"""[Willetts21] Willetts, Camuto, Rainforth, Roberts & Holmes, 2021: Seatbelt-VAEs."""
