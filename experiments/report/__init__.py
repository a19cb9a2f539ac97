"""Tables and figures from the numbers, and the pages that show them."""
