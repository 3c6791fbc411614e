"""How results show themselves: a line in a console, HTML in a notebook. No torch, no pandas."""
