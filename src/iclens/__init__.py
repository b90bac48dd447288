"""Does in-context learning add features, one Bayesian update per example, and which features?

    run = iclens.open("runs/demo")
    run.growth.query("q_value < .05 and verdict == 'grows'")

The public names stand in `__init__.pyi`, each beside its module. A name is imported when it is first used, so
that `import iclens` stays cheap and loads no torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
