"""Doubly robust value and gradient of deterministic policies: study, control, speed."""
