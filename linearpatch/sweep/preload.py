"""What every job of a sweep needs: the process from which jobs are forked imports it once for all."""

import linearpatch.checkpoint.loading
import linearpatch.sweep.worker  # noqa: F401
from linearpatch.config import register_schemas

register_schemas()  # a third of a second that each job would spend
