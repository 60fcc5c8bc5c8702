"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

files        every file and marker of a session folder, and who writes it
folder       the session folder and its record
run_folder   what a run leaves in its folder
run          obtaining one run: read, waited for, or trained
head_start   training half of a run ahead of its turn
scheduling   where runs are trained, and in what order: the door for other engines
workers      the processes of a pytest session: dealing of tests, signals, their end
progress     progress of runs in other processes
experiment   all of it together, for pytest and for `python -m bvae`
hooks        pytest's hooks, which `bvae.plugin` registers where experiments are run
"""

from bvae.records import CorpusRecord
from bvae.session.folder import Session, SessionRecord

__all__ = ["CorpusRecord", "Session", "SessionRecord"]
