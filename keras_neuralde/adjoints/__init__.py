"""Gradients of a solve: each adjoint wraps the loop, which never hears of it."""
