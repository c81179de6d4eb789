"""What a model is and what it needs: shapes, weights, KV cache, memory, rules of shape."""
