"""Direct preference optimisation and related losses (IPO, ORPO, SimPO and others)."""
