"""Soft Q-learning's and policy gradient's gradients along runs."""

import sys

from experiments.engine import gradients
from jaxsoft.training.launch import keep_pages

if __name__ == "__main__":
    keep_pages()
    sys.exit(gradients.main())
