# moved; to be removed
from bvae.session.files import FILMSTRIP as FILMSTRIP
from bvae.session.files import checkpoints as checkpoints
from bvae.session.files import picture_of as picture_of
from bvae.session.run_folder import RunResult as RunResult
from bvae.session.run_folder import read_history as read_history
from bvae.session.run_folder import read_result as read_result
