"""Command lines whose complaints are one line, as every mistake of a user's is."""

import argparse
from typing import NoReturn

from data.settings import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises what `run_entry_point` prints in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; see --help")
