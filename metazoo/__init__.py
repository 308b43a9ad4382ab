"""metazoo: few-shot meta-learning methods, compared on the same episodes, the same backbone and the same budget."""

__version__ = "0.1.0"
