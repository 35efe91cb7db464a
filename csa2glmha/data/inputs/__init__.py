"""What networks take beside plain images: spectra, measurements, masks."""
