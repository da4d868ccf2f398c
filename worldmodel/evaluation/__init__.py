"""Judging a frozen action-conditioned representation: probes, equivariance, path integration, retrieval, intervals."""
