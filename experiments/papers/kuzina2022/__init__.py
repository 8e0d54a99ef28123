"""[Kuzina22] Kuzina, Welling & Tomczak, 2022: defense by MCMC."""
