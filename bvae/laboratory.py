# moved; to be removed
from bvae.session.experiment import Experiment as Laboratory
from bvae.session.experiment import Selection, SetupError

__all__ = ["Laboratory", "Selection", "SetupError"]
