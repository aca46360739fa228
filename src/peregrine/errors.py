"""The one error that a user can cause: a single line that names file, key and remedy."""


class UserError(Exception):
    """Bad configuration, data or artefact. The command line prints it and exits with code 2."""
