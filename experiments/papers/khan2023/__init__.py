"""[Khan23] Khan & Storkey, 2023: the local geometry of encoders."""
