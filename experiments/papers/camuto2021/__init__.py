"""[Camuto21] Camuto, Willetts, Roberts, Holmes & Rainforth, 2021: a theory of robustness."""
