"""Re-export `bvae.report.html.show_run`."""

# moved; to be removed
from bvae.report.html import show_run

__all__ = ["show_run"]
