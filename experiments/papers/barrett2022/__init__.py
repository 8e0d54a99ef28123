"""[Barrett22] Barrett, Camuto, Willetts & Rainforth, 2022: certifiably robust VAEs."""
