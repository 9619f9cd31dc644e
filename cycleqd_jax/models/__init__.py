"""Models as pure functions of a tree of weights, and their Hugging Face folders."""
