"""Differential privacy in figures: calibration of noise, accounts of votes, and the ledger."""
