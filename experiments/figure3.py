"""Figure 3 of the paper: policy gradient against soft Q-learning, §6.3."""

import sys

from experiments import command
from jaxsoft.training.launch import keep_pages

if __name__ == "__main__":
    keep_pages()
    sys.exit(command.main("figure3"))
