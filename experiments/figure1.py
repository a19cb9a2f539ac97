"""Figure 1 of the paper: A2C with naive and with proper entropy (79), (80)."""

import sys

from experiments import command
from jaxsoft.training.launch import keep_pages

if __name__ == "__main__":
    keep_pages()
    sys.exit(command.main("figure1"))
