"""Mathematics on arrays: importance weights, returns and traces, divergences. One trajectory `[T]` at a time; vmap for more."""
