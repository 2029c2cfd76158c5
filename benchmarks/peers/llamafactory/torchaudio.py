"""Empty: LLaMA-Factory 0.9.5 imports torchaudio at start and needs it for sound only; it has no CPU build here."""
