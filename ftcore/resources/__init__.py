"""The machine and the memory a run takes, by arithmetic on config.json. Imports no torch."""
