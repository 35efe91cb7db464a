"""How networks are deployed: the parts that families build with, and ``rewrite``, which asks them."""
