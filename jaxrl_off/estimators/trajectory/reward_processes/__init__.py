"""STAR: abstract reward processes, the abstractions of states they need, and rules that choose among them."""
