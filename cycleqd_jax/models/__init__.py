"""Models as pure functions of a tree of weights, with their tokenizers and files."""
