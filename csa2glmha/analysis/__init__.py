"""Why low rank works for a checkpoint: spectra of its attention, and what each rank would lose."""
