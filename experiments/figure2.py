"""Figure 2 of the paper: deep Q-learning with hard and soft maxima, (81)-(83)."""

import sys

from experiments import command
from jaxsoft.training.launch import keep_pages

if __name__ == "__main__":
    keep_pages()
    sys.exit(command.main("figure2"))
