"""From engagement histories to a model artifact: pairs, losses, balance, trainer, report."""
