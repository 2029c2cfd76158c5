"""Direct preference optimisation and its kin (ORPO, SimPO, IPO)."""
