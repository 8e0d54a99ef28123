"""Speed: what the library costs beside a floor or a slow definition."""
